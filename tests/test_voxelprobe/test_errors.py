import pickle

import pytest

from voxelprobe import errors
from voxelprobe.transport.protocol import RetryableError

BASES = {
    errors.VoxelProbeError: (Exception,),
    errors.InputError: (errors.VoxelProbeError, ValueError),
    errors.UnsupportedError: (errors.VoxelProbeError,),
    errors.CorruptDataError: (errors.VoxelProbeError, ValueError),
    errors.TransportError: (errors.VoxelProbeError, OSError),
    errors.AuthorizationError: (errors.TransportError,),
    errors.AuditError: (errors.VoxelProbeError,),
    errors.StaleRunError: (errors.VoxelProbeError,),
    RetryableError: (errors.TransportError,),
}


def test_the_table_has_every_error_of_the_module():
    """A new error class is added to the table, or this fails."""
    ours = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert ours == set(BASES) - {RetryableError}


@pytest.mark.parametrize("error", BASES)
def test_the_tree_is_what_the_caller_does_next(error):
    """Each class has its parents in our tree and in Python's, so that handlers of either catch it."""
    assert error.__bases__ == BASES[error]
    assert error.__doc__


@pytest.mark.parametrize("error", BASES)
@pytest.mark.parametrize("message", ["chunk 0-64 of gs://b/seg: found 7 bytes", "", "ä\n" * 2000])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_cross_processes_whole(error, message, protocol):
    """A pickled error comes back as the same class with the same message and notes."""
    original = error(message)
    original.add_note("while reading points")
    copy = pickle.loads(pickle.dumps(original, protocol))
    assert (type(copy), str(copy), copy.args) == (error, message, (message,))
    if error is not RetryableError:
        assert copy.__notes__ == ["while reading points"]


@pytest.mark.parametrize("wait", [None, 0.0, 12.5])
def test_what_a_server_asked_to_wait_crosses_too(wait):
    """Retry-After isn't lost on the way."""
    copy = pickle.loads(pickle.dumps(RetryableError("503", wait)))
    assert (str(copy), copy.wait_seconds) == ("503", wait)
