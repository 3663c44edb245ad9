"""Our parts against real brokers and a real etcd."""
