"""A config's way: found, changed, checked, built."""
