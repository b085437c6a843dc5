"""Neuroglancer Precomputed volumes: what an `info` says, and where a voxel is stored."""
