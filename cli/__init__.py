"""The `kfed` command."""
