"""One client connection: requests in, in order; answers out, in the same order."""
