"""The web console.

Pages for operators over the same admin API the command line uses; it holds no state and decides nothing itself.
"""
