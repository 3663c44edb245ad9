"""Load under faults, with every acknowledgement and every read recorded and judged."""
