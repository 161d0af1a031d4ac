"""One file, one system; the registry finds them."""
