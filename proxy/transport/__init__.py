"""Sockets: channels, splicing, listeners, upstream connections. Nothing here knows what a request means."""
