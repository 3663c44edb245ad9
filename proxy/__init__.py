"""The proxy: speaks the Kafka protocol to clients, and to the cluster that serves what they ask for.

`session` decides (no I/O), `apis` has one module an API family that is answered or rewritten, `transport` is the
only place that touches sockets, `identity` finds out who asks, `worker` puts them together in one process.
"""
