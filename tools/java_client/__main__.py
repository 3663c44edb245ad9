"""`python -m tools.java_client` compiles the test client and prints where it is."""

from tools.java_client.build import classes

print(classes())
