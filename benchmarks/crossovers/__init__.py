"""What K points of a chunk cost, against decoding all of it: see `__main__`."""
