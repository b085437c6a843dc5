"""The second opinion: points read again by other code and other packages than those that gave the labels.

Nothing here may use `voxelprobe.volume`, `codecs`, `sharding`, `cache` or the units of `points`: a fault there has to
show as a difference. It is plain and slow on purpose. Why so: docs/design/016-audit.md.
"""
