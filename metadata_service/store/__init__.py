"""A transactional key-value store with watches and leases: one contract, two backends (embedded, etcd)."""
