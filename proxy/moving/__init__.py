"""What a proxy worker does while topics move, and for topics that have moved."""
