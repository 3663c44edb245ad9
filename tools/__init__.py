"""Local clusters, test clients and benchmarks; never installed with the application."""
