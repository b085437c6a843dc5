"""What tests and the demo are made of: volumes, segmentations and servers with known contents."""
