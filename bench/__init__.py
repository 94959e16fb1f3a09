"""Side-by-side measurements: `make bench` starts every server itself, on loopback, and prints the ratios."""
