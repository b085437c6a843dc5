"""The `neuroglancer_uint64_sharded_v1` format: in which file, and where in it, a chunk is stored."""
