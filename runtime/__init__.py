"""What every process needs: settings, logging, metrics, TLS."""
