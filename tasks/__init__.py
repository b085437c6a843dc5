"""The stages of a run as Luigi tasks: thin, the work is in `voxelprobe`."""
