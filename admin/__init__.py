"""The admin API: what operators and programs see and change over HTTP; the command line and the console use it."""
