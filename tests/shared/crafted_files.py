"""Parts of safetensors files written by hand, with whatever lies a test wants in the header."""

import struct

import pytest
from lora_files import MODULE
from untrusted_files import safetensors

from glance_core.errors import AdapterError
from glance_core.lora.reader import read_adapter

DOWN, UP, ALPHA = (f"{MODULE}.{end}" for end in ("lora_A.weight", "lora_B.weight", "alpha"))
ONE = struct.pack("<f", 1)


def entry(start, end, shape, dtype="F32"):
    """Return a tensor's entry in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def header_of_pair(**changes):
    """Return the header of a good file of rank 1, with changes. Its data is ONE * 2."""
    return {DOWN: entry(0, 4, [1, 1]), UP: entry(4, 8, [1, 1]), **changes}


def with_metadata(**metadata):
    """Return the bytes of a good file of rank 1 with this metadata."""
    return safetensors({"__metadata__": metadata, **header_of_pair()}, ONE * 2)


def write(folder, content):
    """Write the bytes to a.safetensors and return its path."""
    path = folder / "a.safetensors"
    path.write_bytes(content)
    return path


def rejection(path):
    """Return the error about a file. It must be one sentence that is safe to print."""
    with pytest.raises(AdapterError) as rejected:
        read_adapter(path)
    message = str(rejected.value)
    assert message.isprintable() and len(message) <= 1010, message
    return message
