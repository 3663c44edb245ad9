"""The whole, as its users see it: real clients against `kfed`."""
