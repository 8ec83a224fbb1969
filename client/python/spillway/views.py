# SPDX-License-Identifier: Apache-2.0
"""Views: leases on bytes of the store, and the bytes themselves, without a copy.

    with tensor.acquire(0, 1 << 20, write=True) as views:
        for view in views:
            numpy.frombuffer(view.data, numpy.float32)[:] = 0

`view.data` is a memoryview of the very bytes that the daemon keeps, read-only if the lease is for reading. While a
lease lives they neither move nor change tier. It ends by release() or discard(), at the end of a `with`, with its
session, or when nothing refers to it any more (then with a ResourceWarning, and a writer's change is given up).

What was made from the bytes must be gone by then. The memoryviews that `data` returned are released with the lease, and
are a ValueError from then on. Whatever else still has the bytes (slices and casts of them, NumPy arrays, a Py_buffer of
an extension) makes the release a BufferError, as it makes resizing a bytearray one, and the lease lives on: nothing can
reach bytes that are no longer leased. One case is not seen: an object that keeps the memoryview but has given its
Py_buffer back, as torch.frombuffer() does. It must be dropped before.

A chain of references makes that so. The memoryviews keep the cffi buffer alive, that keeps the pointer, whose
destructor is a method of the Grant, and the Grant keeps the session. So the bytes are mapped for as long as any of it
lives; and whether somebody has them still is told by a weak reference to the buffer. Nothing refers back, so all goes
when the last user goes.
"""
from __future__ import annotations

import sys
import warnings
import weakref
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    NoReturn,
    Optional,
    Sequence,
    Tuple,
    Union,
    overload,
)

from . import dlpack
from ._native import ffi, lib
from .errors import Limit, Statuses, status_error

if TYPE_CHECKING:
    from .space import Space

TIERS = {
    lib.SPW_TIER_NONE: "none",
    lib.SPW_TIER_GPU: "gpu",
    lib.SPW_TIER_DRAM: "dram",
    lib.SPW_TIER_CXL: "cxl",
    lib.SPW_TIER_NVME: "nvme",
}


class Unpicklable:
    """Handles of this process: there is nothing of them to write down."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} belongs to its process, and cannot be pickled or copied")


class Grant:
    """What the library granted, struct spw_view[], and who looks at it. The session's lock guards it."""

    __slots__ = (
        "__weakref__",
        "array",
        "ended",
        "live",
        "n",
        "offset",
        "opened",
        "reserved",
        "shown",
        "space",
        "writable",
    )

    def __init__(
        self, space: "Space", n: int, writable: bool = False, reserved: bool = False, offset: Optional[int] = None
    ) -> None:
        self.space = space
        self.array = ffi.new("struct spw_view[]", n)
        self.n = n
        self.writable = writable or reserved
        self.reserved = reserved
        self.offset = offset  # of the first view in the one object that all are of; None: each is of its own
        self.live = 0  # how many leases there are
        self.ended = bytearray(n)  # 1: is being released, or was
        self.shown = bytearray(n)  # 1: somebody has seen the bytes, and may have written them
        # By index: the View that has shown its bytes, and the cffi buffer that everybody has them from.
        self.opened: Dict[int, Tuple[Any, Any]] = {}
        with space.session._lock:
            space.session._grants.add(self)

    def granted(self) -> None:
        """The call that fills the array has returned."""
        self.live = sum(self.array[i].lease != 0 for i in range(self.n))

    def view_error(self, i: int) -> Exception:
        """Why view i has no bytes."""
        status = self.array[i].status
        if status < 0:
            return status_error(status, "the view", self.array[i].detail)
        return ValueError("the view was released")

    def open(self, i: int, view: "View") -> Tuple[Any, memoryview]:
        """The bytes of view i."""
        session = self.space.session
        with session._lock:
            session._check_process()
            c = self.array[i]
            if self.ended[i] or c.data == ffi.NULL or session.closed:
                raise self.view_error(i)
            buffer = self.opened[i][1]() if i in self.opened else None
            if buffer is None:
                pointer = ffi.gc(ffi.cast("char *", c.data), self._kept)
                buffer = ffi.buffer(pointer, c.size_bytes)
            self.opened[i] = (weakref.ref(view), weakref.ref(buffer))
            self.shown[i] = 1
            data = memoryview(buffer)
        return buffer, data if self.writable else data.toreadonly()

    def address(self, i: int) -> int:
        """Of the bytes of view i."""
        session = self.space.session
        with session._lock:
            session._check_process()
            if self.ended[i] or self.array[i].data == ffi.NULL or session.closed:
                raise self.view_error(i)
            self.shown[i] = 1
            return int(ffi.cast("uintptr_t", self.array[i].data))

    def _kept(self, pointer: Any) -> None:
        """The bytes' last user has gone. Being this pointer's destructor, it has kept the Grant until now."""

    def close(self, first: int, n: int) -> None:
        """Takes the bytes of views away from everybody. BufferError if somebody has an export of them."""
        session = self.space.session
        with session._lock:
            chosen = [i for i in range(first, first + n) if not self.ended[i]]
            for i in chosen:
                self.ended[i] = 1
            try:
                for i in [i for i in self.opened if first <= i < first + n]:
                    self._close_one(i)
            except BufferError:
                for i in chosen:
                    self.ended[i] = 0
                raise

    def _close_one(self, i: int) -> None:
        view_ref, buffer_ref = self.opened[i]
        view = view_ref()
        try:
            if view is not None:
                view._forget()
        except BufferError:
            pass  # is counted below
        if buffer_ref() is not None:
            raise BufferError("the view's bytes are still exported: to a slice, a cast, an array, or another call")
        del self.opened[i]

    def end(self, function: Callable[..., int], first: int, n: int, *args: Any) -> List[int]:
        """Gives leases back by a function of the library's; returns which. Where it fails, the others are as before."""
        given = self._begin(first, n)
        if given:
            self._give(given, [(first, n)], function, *args)
        return given

    def discard(self, first: int, n: int) -> None:
        """Releases leases; of a writer's, what was written is given up. Nobody wrote where nobody saw the bytes."""
        given = self._begin(first, n)
        if not given:
            return
        written = [i for i in given if self.shown[i]] if self.writable else []
        unwritten = [i for i in given if not (self.writable and self.shown[i])]
        try:
            self._give(written, _runs(written), lib.spw_release, lib.SPW_DISCARD)
        finally:
            self._give(unwritten, _runs(unwritten), lib.spw_release, 0)

    def _begin(self, first: int, n: int) -> List[int]:
        """Those that have a lease, which nobody can see from now on. None: they are given back, or being given back."""
        with self.space.session._lock:
            given = [i for i in range(first, first + n) if not self.ended[i] and self.array[i].lease]
            if given:
                self.close(first, n)
        return given

    def _give(self, given: List[int], runs: List[Tuple[int, int]], function: Callable[..., int], *args: Any) -> None:
        session = self.space.session
        try:
            for first, n in runs:
                session._call(function, self.space._handle, self.array + first, n, *args)
        finally:
            with session._lock:
                for i in given:
                    if self.array[i].lease == 0:
                        self.live -= 1
                    else:
                        self.ended[i] = 0

    def give_back(self) -> None:
        """Nobody wants the leases, nor what was written."""
        try:
            if self.reserved:
                self.end(lib.spw_abort, 0, self.n)
            else:
                self.discard(0, self.n)
        except OSError:
            pass  # the session is over, and the leases with it

    def reopen(self) -> None:
        """The leases that there are go on."""
        for i in range(self.n):
            self.ended[i] = self.array[i].lease == 0

    def session_closes(self) -> None:
        """The leases end with the session."""
        self.ended[:] = b"\1" * self.n
        self.live = 0

    def in_child(self) -> None:
        """After fork(): the bytes are not mapped here, so nobody may be led to them."""
        for view_ref, _ in self.opened.values():
            view = view_ref()
            try:
                if view is not None:
                    view._forget()
            except BufferError:
                pass  # an array of the parent's; touching it ends the child

    def __del__(self) -> None:
        if not self.live or sys.is_finalizing() or not self.space.session._is_usable():
            return
        warnings.warn("leases were not released", ResourceWarning)
        self.give_back()


class View(Unpicklable):
    """A lease on bytes of one object (of one piece of it), or why there is none.

    Has the buffer protocol from Python 3.12 on; before, pass `view.data`. The calls of this package take either. And it
    has DLPack: torch.from_dlpack(view).
    """

    __slots__ = ("_grant", "_index", "_buffer", "_data", "__weakref__")

    def __init__(self, grant: Grant, index: int) -> None:
        self._grant = grant
        self._index = index
        self._buffer: Any = None
        self._data: Optional[memoryview] = None

    @property
    def data(self) -> memoryview:
        """The bytes: a memoryview of format "B" and one dimension, released with the lease; read-only but for a writer.

        The status's SpillwayError if there are none, ValueError once the view was released.
        """
        data = self._data
        if data is None:
            self._buffer, self._data = self._grant.open(self._index, self)
            data = self._data
        return data

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self.data)

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: Optional[Tuple[int, int]] = None,
        dl_device: Optional[Tuple[int, int]] = None,
        copy: Optional[bool] = None,
    ) -> Any:
        """The bytes for torch.from_dlpack(), numpy.from_dlpack() and their like: an array of uint8, without a copy.

        As long as there is one, the lease does not end (BufferError). BufferError too for a lease for reading, if the
        library's DLPack is one before 1.0: that has no arrays that are read-only.
        """
        if stream is not None or dl_device not in (None, dlpack.CPU) or copy:
            raise BufferError("a view's bytes are on the CPU, and are not copied")
        self.data  # is there any?
        return dlpack.export(self._buffer, self.address, self.size, self._grant.writable, max_version)

    def __dlpack_device__(self) -> Tuple[int, int]:
        return dlpack.CPU

    def _forget(self) -> None:
        if self._data is not None:
            self._data.release()
        self._buffer = self._data = None

    @property
    def size(self) -> int:
        """How many bytes it has; 0 if there are none."""
        return int(self._grant.array[self._index].size_bytes)

    def __len__(self) -> int:
        return self.size

    @property
    def address(self) -> int:
        """Where its bytes are, for calls into native code; valid until the lease ends, which nobody checks."""
        return self._grant.address(self._index)

    @property
    def offset(self) -> int:
        """Where it begins in its object, in bytes."""
        grant = self._grant
        if self._index == 0 or grant.offset is None:
            return grant.offset or 0
        piece = grant.space.piece_bytes
        return (grant.offset // piece + self._index) * piece

    @property
    def status(self) -> int:
        """0, or a negative errno: why this one was not granted."""
        return int(self._grant.array[self._index].status)

    @property
    def limit(self) -> Optional[Limit]:
        """The limit that was met where it was not granted, or None."""
        return Limit.of(self._grant.array[self._index].detail)

    @property
    def tier(self) -> str:
        """Where the bytes were found: "dram", "cxl", "nvme", or "none"."""
        return TIERS[self._grant.array[self._index].tier]

    @property
    def fetched(self) -> bool:
        """Did the bytes come from a device for this call?"""
        return bool(self._grant.array[self._index].flags & lib.SPW_RESULT_FETCHED)

    @property
    def released(self) -> bool:
        """Has the lease ended?"""
        return bool(self._grant.ended[self._index])

    def release(self) -> None:
        """Ends this lease alone: see Views.release()."""
        _release(self._grant, self._index, 1)

    def discard(self) -> None:
        """Ends this lease alone, and gives up what was written: see Views.discard()."""
        _discard(self._grant, self._index, 1)

    def __repr__(self) -> str:
        state = "released" if self.released else f"status {self.status}" if self.status else self.tier
        return f"<View of {self.size} bytes, {state}>"


def _runs(indices: List[int]) -> List[Tuple[int, int]]:
    """Indices in their order as (first, how many) of those that follow each other."""
    runs: List[Tuple[int, int]] = []
    for i in indices:
        if runs and sum(runs[-1]) == i:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((i, 1))
    return runs


def _discard(grant: Grant, first: int, n: int) -> None:
    if grant.reserved:
        raise ValueError("a reservation ends by commit() or abort()")
    grant.discard(first, n)


def _release(grant: Grant, first: int, n: int, changed: bool = True) -> None:
    if grant.reserved:
        raise ValueError("a reservation ends by commit() or abort()")
    for i in grant.end(lib.spw_release, first, n, lib.SPW_DIRTY if grant.writable and changed else 0):
        if grant.array[i].status < 0:
            raise status_error(grant.array[i].status, f"release of element {i}", grant.array[i].detail)


class Views(Unpicklable, Sequence[View]):
    """A list of views that were granted by one call, and a context manager that gives them back.

    A `with` that ends without an exception releases them; with one, it discards them.
    """

    __slots__ = ("_grant", "_views", "__weakref__")

    def __init__(self, grant: Grant) -> None:
        self._grant = grant
        self._views = [View(grant, i) for i in range(grant.n)]

    @overload
    def __getitem__(self, index: int) -> View: ...

    @overload
    def __getitem__(self, index: slice) -> List[View]: ...

    def __getitem__(self, index: Union[int, slice]) -> Union[View, List[View]]:
        return self._views[index]

    def __len__(self) -> int:
        return len(self._views)

    def __iter__(self) -> Iterator[View]:
        return iter(self._views)

    @property
    def statuses(self) -> Statuses:
        """Of each: 0, or a negative errno."""
        return Statuses(view.status for view in self._views)

    def check(self, *allowed: int) -> "Views":
        """Raises the error of the first that was not granted, unless its errno is allowed. The leases stay."""
        for i, view in enumerate(self._views):
            if view.status < 0 and -view.status not in allowed:
                raise status_error(view.status, f"element {i}", self._grant.array[i].detail)
        return self

    def release(self, *, changed: bool = True) -> None:
        """Ends the leases; of a writer, the bytes are the tensor's from now on.

        changed: False: the writer has looked at them, but has written nothing.
        Those that have ended are passed over. BufferError if bytes are still exported: then no lease has ended. In a
        shared pool the bytes are copied now; if that fails (NoSpace), the tensor is what it was, and the lease has
        ended.
        """
        _release(self._grant, 0, self._grant.n, changed)

    def discard(self) -> None:
        """Ends the leases; of a writer, the range goes back to what it was, where that is known.

        It is known in a shared pool, and where a device has it ("durable", after a sync()). Else the piece is lost:
        reading it is Corrupted, until it is written anew as a whole. A view whose `data` nobody has asked for has not
        changed anything.
        """
        _discard(self._grant, 0, self._grant.n)

    def __enter__(self) -> "Views":
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None:
            self.release()
            return
        try:
            self.discard()
        except BufferError:
            pass  # the exception is what counts; the lease goes with who has its bytes


class Reservation(Views):
    """Room for new blocks: write each view's `data`, then commit().

    A view whose status is not 0 has no room: -EEXIST (it is there already), -EINPROGRESS (somebody else is writing it),
    -ENOSPC. A `with` that ends without an exception commits; with one, it aborts.
    """

    __slots__ = ()

    def commit(self, *, chain: bool = False) -> Statuses:
        """Publishes the blocks; they are immutable from now on. Of each: 0, or a negative errno."""
        self._grant.end(lib.spw_commit, 0, self._grant.n, lib.SPW_CHAIN if chain else 0)
        return self.statuses

    def abort(self) -> None:
        """Gives the room back, unpublished."""
        self._grant.end(lib.spw_abort, 0, self._grant.n)

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None:
            self.commit()
            return
        try:
            self.abort()
        except BufferError:
            pass
