"""What freed memory becomes."""

from __future__ import annotations

import functools

# glibc takes blocks from the system one by one up to this size, if one so large was freed before (mallopt(3)).
_LARGEST_BYTES = (32 << 20) - (64 << 10)


@functools.cache
def keep_freed_memory() -> None:
    """Have the process use memory of some 100 KB again that it freed, instead of getting new pages each time.

    At first glibc returns blocks from 128 KiB on, and the top of the heap, to the system at once; then every page of
    the next chunk is a page fault, together as expensive as inflating it. Freeing one large block raises that limit to
    its size, and what is kept at the top of the heap to twice that. The block is never touched, so it costs nothing,
    here or with another allocator; a second one would come from the heap, to be cleared.
    """
    bytes(_LARGEST_BYTES)
