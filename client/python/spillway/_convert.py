# SPDX-License-Identifier: Apache-2.0
"""From Python's arguments to the C library's. What is returned owns its memory: keep it for as long as the call runs."""
from __future__ import annotations

import math
import operator
import struct
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Union

from ._native import ffi, lib
from .views import View

# A key or a name: 1 to 32 bytes (a str is its UTF-8), or those and a group, a number of 32 bits.
Key = Union[bytes, str, Tuple[Union[bytes, str], int]]

_KEY = struct.Struct("=32sIBxHHH")  # struct spw_key
assert _KEY.size == ffi.sizeof("struct spw_key") and lib.SPW_KEY_BYTES == 32


def key_parts(key: Any) -> Tuple[bytes, int]:
    """A key's bytes and group. An object that has a `key`, as tensors do, is named by that."""
    key = getattr(key, "key", key)
    name, group = key if isinstance(key, tuple) and len(key) == 2 else (key, 0)
    if isinstance(name, str):
        name = name.encode()
    if not isinstance(name, bytes):
        raise TypeError(f"a key is bytes, str, or one of them and a group, not {type(key).__name__}")
    if not 1 <= len(name) <= lib.SPW_KEY_BYTES:
        raise ValueError(f"a key has 1 to {lib.SPW_KEY_BYTES} bytes, not {len(name)}")
    group = operator.index(group)
    if not 0 <= group < 1 << 32:
        raise ValueError(f"a group is a number of 32 bits, not {group}")
    return name, group


def key_array(keys: Iterable[Any]) -> Tuple[Any, int]:
    """struct spw_key[], and how many."""
    if isinstance(keys, (bytes, str)):
        raise TypeError("this takes a list of keys")
    packed = []
    for key in keys:
        name, group = key_parts(key)
        packed.append(_KEY.pack(name, group, len(name), 0, 0, 0))
    array = ffi.new("struct spw_key[]", len(packed))
    ffi.memmove(array, b"".join(packed), _KEY.size * len(packed))
    return array, len(packed)


def size_array(sizes: Optional[Sequence[int]], n: int) -> Any:
    """uint64_t[] of n sizes in bytes, or NULL."""
    if sizes is None:
        return ffi.NULL
    array = ffi.new("uint64_t[]", list(sizes))
    if len(array) != n:
        raise ValueError(f"{len(array)} sizes for {n} keys")
    return array


def memory(buffer: Any, writable: bool) -> Any:
    """The bytes of whatever has the buffer protocol, contiguous, or of a View. They stay where they are meanwhile."""
    return ffi.from_buffer("char[]", buffer.data if isinstance(buffer, View) else buffer, writable)


def iovec_array(buffers: Iterable[Any], n: int, writable: bool) -> Tuple[Any, List[Any]]:
    """struct spw_iovec[] of n buffers, and what must be kept with it."""
    kept = [memory(buffer, writable) for buffer in buffers]
    if len(kept) != n:
        raise ValueError(f"{len(kept)} buffers for {n} keys")
    array = ffi.new("struct spw_iovec[]", n)
    for i, bytes_there in enumerate(kept):
        array[i].data = bytes_there
        array[i].size_bytes = len(bytes_there)
    return array, kept


def milliseconds(timeout: Optional[float], least: int = 1) -> int:
    """Seconds as timeout_ms, rounded up; None: as long as the daemon lets a request wait, which is 60 s."""
    if timeout is None or timeout == math.inf:
        return lib.SPW_FOREVER
    if not timeout >= 0:
        raise ValueError(f"a timeout is a number of seconds, not {timeout!r}")
    return min(max(math.ceil(timeout * 1000), least), lib.SPW_FOREVER - 1)


def c_string(text: Union[str, bytes], what: str) -> Any:
    """char[] with the final NUL."""
    encoded = text.encode() if isinstance(text, str) else text
    if not isinstance(encoded, bytes):
        raise TypeError(f"{what} is a str, not {type(text).__name__}")
    if b"\0" in encoded:
        raise ValueError(f"{what} has a NUL in it")
    return ffi.new("char[]", encoded)


def choice(what: str, table: Dict[str, int], name: str) -> int:
    """The number of a name of an enum."""
    try:
        return table[name]
    except (KeyError, TypeError):
        raise ValueError(f"{what} is one of {', '.join(table)}; not {name!r}") from None


def flags(chain: bool = False, all_or_nothing: bool = False, write: bool = False, no_wait: bool = False) -> int:
    """SPW_CHAIN, SPW_ALL, SPW_WRITE, SPW_NO_WAIT."""
    return (
        (lib.SPW_CHAIN if chain else 0)
        | (lib.SPW_ALL if all_or_nothing else 0)
        | (lib.SPW_WRITE if write else 0)
        | (lib.SPW_NO_WAIT if no_wait else 0)
    )
