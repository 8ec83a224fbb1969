# SPDX-License-Identifier: Apache-2.0
"""From Python's arguments to the C library's. What is returned owns its memory: keep it as long as the call runs."""
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


class Memory:
    """Bytes of buffers: whatever has the buffer protocol and is contiguous, and views. They stay where they are until
    close(), or the end of a `with`: not longer, whoever has an exception's traceback."""

    def __init__(self) -> None:
        self._exports: List[Any] = []

    def add(self, buffer: Any, writable: bool) -> Any:
        """char[] of a buffer's bytes."""
        export = ffi.from_buffer("char[]", buffer.data if isinstance(buffer, View) else buffer, writable)
        self._exports.append(export)
        return export

    def iovec_array(self, buffers: Iterable[Any], n: int, writable: bool) -> Any:
        """struct spw_iovec[] of n buffers."""
        try:
            for buffer in buffers:
                self.add(buffer, writable)
            if len(self._exports) != n:
                raise ValueError(f"{len(self._exports)} buffers for {n} keys")
        except BaseException:
            self.close()
            raise
        array = ffi.new("struct spw_iovec[]", n)
        for i, export in enumerate(self._exports):
            array[i].data = export
            array[i].size_bytes = len(export)
        return array

    def close(self) -> None:
        """Whoever owns the buffers may do with them as they like."""
        for export in self._exports:
            ffi.release(export)
        self._exports = []

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def milliseconds(timeout: Optional[float], least: int = 1) -> int:
    """Seconds as timeout_ms, rounded up; None: as long as the daemon lets a request wait, which is 60 s."""
    if timeout is None or timeout == math.inf:
        return int(lib.SPW_FOREVER)
    if not timeout >= 0:
        raise ValueError(f"a timeout is a number of seconds, not {timeout!r}")
    return min(max(math.ceil(timeout * 1000), least), int(lib.SPW_FOREVER) - 1)


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
    return int(
        (lib.SPW_CHAIN if chain else 0)
        | (lib.SPW_ALL if all_or_nothing else 0)
        | (lib.SPW_WRITE if write else 0)
        | (lib.SPW_NO_WAIT if no_wait else 0)
    )
