"""What can go wrong, grouped by what the caller does next."""

from __future__ import annotations


class VoxelProbeError(Exception):
    """Base of every error that voxelprobe raises on purpose."""


class InputError(VoxelProbeError, ValueError):
    """Points, parameters or configuration are wrong: fix them and run again."""


class UnsupportedError(VoxelProbeError):
    """A legal volume or table that can't be read here; the message says what would be needed."""


class CorruptDataError(VoxelProbeError, ValueError):
    """Bytes contradict their format: fetched once more, then reported."""


class TransportError(VoxelProbeError, OSError):
    """A store gave no answer: retried, then safe to run again."""


class AuthorizationError(TransportError):
    """A store refused us: not retried; the message says which credentials are missing."""


class AuditError(VoxelProbeError):
    """A label is not what an independent reading finds: nothing is published; the message says what to look at."""


class StaleRunError(VoxelProbeError):
    """The run's folder was made with other parameters or from another input."""
