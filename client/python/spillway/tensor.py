# SPDX-License-Identifier: Apache-2.0
"""Tensors: mutable, named, of fixed size, addressed by byte range.

Above Space.piece_bytes (8 MiB) a tensor is kept in pieces, and a range of it is leased as a view for each piece that
it touches. In a pool of one user's own, views are the tensor's own bytes, and readers may see a writer's before it is
done. In a shared pool a writer has a copy, which is the tensor's when it is released: there, write large ranges.
"""
from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Optional, Tuple

from ._convert import Memory, flags, key_array, milliseconds
from ._native import lib
from .views import Grant, Unpicklable, Views

if TYPE_CHECKING:
    from .space import Space


class Tensor(Unpicklable):
    """A tensor of a space: made by Space.tensor(). key: its name in bytes, and its group. nbytes: its size.

    It is the daemon's: nothing of it ends with this object, or with the session (but a "scratch" space's objects go
    with their owner).
    """

    def __init__(self, space: "Space", key: Tuple[bytes, int], nbytes: int) -> None:
        self.space = space
        self.key = key
        self.nbytes = operator.index(nbytes)
        self._key, _ = key_array([key])

    def acquire(
        self, offset: int = 0, length: Optional[int] = None, write: bool = False, timeout: Optional[float] = None
    ) -> Views:
        """Leases on a range of bytes, a view for each piece that it touches; length None: to the end.

        A context manager that releases them: what was written is the tensor's then, and given up on an exception
        (Views.discard() tells what that means). If a piece is not granted, none is: NotFound, NoSpace (`limit` tells
        what is full), Corrupted, …
        """
        offset, length = self._range(offset, length)
        piece = self.space.piece_bytes
        n = (offset + length - 1) // piece - offset // piece + 1
        grant = Grant(self.space, n, writable=write, offset=offset)
        wait_ms = milliseconds(timeout)
        self.space._call(
            lib.spw_acquire_range, self._key, offset, length, flags(write=write), wait_ms, grant.array, n
        )
        grant.granted()
        views = Views(grant)
        try:
            return views.check()
        except OSError:
            grant.give_back()
            raise

    def put(self, offset: int, buffer: Any, timeout: Optional[float] = None) -> None:
        """Copies all of a buffer to the range that begins at byte `offset`."""
        with Memory() as memory:
            data = memory.add(buffer, False)
            self.space._call(lib.spw_put_range, self._key, offset, data, len(data), milliseconds(timeout))

    def get(self, offset: int, buffer: Any, timeout: Optional[float] = None) -> None:
        """Fills all of a writable buffer from the range that begins at byte `offset`."""
        with Memory() as memory:
            data = memory.add(buffer, True)
            self.space._call(lib.spw_get_range, self._key, offset, data, len(data), milliseconds(timeout))

    def prefetch(self, deadline: Optional[float] = None) -> None:
        """Brings a tensor of one piece into memory, in `deadline` seconds if possible. EMSGSIZE: it has more."""
        self.space.prefetch([self.key], deadline=deadline).check()

    def sync(self, timeout: Optional[float] = None) -> None:
        """Makes it durable: see Space.sync(), which does that for a list at once."""
        self.space.sync([self.key], timeout=timeout)

    def delete(self) -> None:
        """Deletes it. NotFound: it was."""
        self.space.delete([self.key]).check()

    def _range(self, offset: int, length: Optional[int]) -> Tuple[int, int]:
        offset = operator.index(offset)
        length = self.nbytes - offset if length is None else operator.index(length)
        if offset < 0 or length <= 0 or offset + length > self.nbytes:
            raise ValueError(f"{length} bytes from {offset} on are no range of a tensor of {self.nbytes} bytes")
        return offset, length

    def __repr__(self) -> str:
        return f"<Tensor {self.key[0]!r} of {self.nbytes} bytes>"
