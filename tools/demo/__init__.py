"""`make demo`: the main job on two real clusters, shown as it happens and checked record by record."""
