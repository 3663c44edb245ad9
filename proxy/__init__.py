"""What clients connect to: sessions without I/O, one module an API, and the trio shell around them."""
