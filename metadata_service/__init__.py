"""What is true: models, the store, watches, leases, operations, the controller."""
