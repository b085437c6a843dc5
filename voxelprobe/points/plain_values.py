"""Values as they are, whatever Arrow wrapped them in: dictionary encoding, extension types."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

# An Arrow array, field or type whose kind is known only when a table is read: typed stubs have a class for each kind.
Dynamic = Any


def plain_type(dtype: Dynamic) -> Dynamic:
    """Return the type of the values themselves, without dictionary encoding and extension types."""
    while True:
        if isinstance(dtype, pa.BaseExtensionType):
            dtype = dtype.storage_type
        elif pa.types.is_dictionary(dtype):
            dtype = dtype.value_type
        else:
            return dtype


def plain_array(array: Dynamic) -> Dynamic:
    """Return the values themselves, an array of the type `plain_type` says."""
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif isinstance(array, pa.DictionaryArray):
            array = array.dictionary_decode()
        else:
            return array
