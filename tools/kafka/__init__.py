"""Apache Kafka itself, for tests, demo and benchmarks: its jars, its JVMs and its command line tools."""
