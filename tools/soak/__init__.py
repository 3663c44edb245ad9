"""Long runs under load and faults."""
