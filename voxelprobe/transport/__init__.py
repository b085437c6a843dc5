"""Bytes from stores: one small source protocol, retries, ranges, and the wrappers that objects come in."""
