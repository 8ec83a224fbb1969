# SPDX-License-Identifier: Apache-2.0
"""Spaces: blocks by key, in lists.

Every call takes a list of keys, and one call with a thousand costs little more than one with a single key. A key is 1
to 32 bytes (a str is its UTF-8), or those and a group: `(b"…", 7)`. Buffers are whatever has the buffer protocol and
is contiguous: bytes, bytearray, memoryview, NumPy arrays, views. A list's elements have a status each, 0 or a negative
errno; what is wrong with the list as a whole is an exception.

Timeouts are seconds: how long to wait for room or for a device at most; None: as long as the daemon lets a request wait
(60 s). `chain` says that each key is the prefix of the next, as the blocks of a request are. An empty list is no error,
and asks for nothing.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Iterable, List, NamedTuple, Optional, Sequence

from ._convert import Key, Memory, choice, flags, key_array, key_parts, milliseconds, size_array
from ._native import ffi, lib
from .errors import Statuses
from .tensor import Tensor
from .views import TIERS, Grant, Reservation, Unpicklable, View, Views

if TYPE_CHECKING:
    from .queue import Queue
    from .session import Pool, Session

ADVICE = {
    "not_again": lib.SPW_ADVICE_NOT_AGAIN,
    "uses_left": lib.SPW_ADVICE_USES_LEFT,
    "keep_until": lib.SPW_ADVICE_KEEP_UNTIL,
    "score": lib.SPW_ADVICE_SCORE,
}


class Hit(NamedTuple):
    """What a lookup tells of one key.

    status: 0: it is there; -ENOENT; -EINPROGRESS: it is being written. size: in bytes. tier: where it is. pending: it
    is being written by someone, or read from a device.
    """

    status: int
    size: int
    tier: str
    pending: bool


class Hits(List[Hit]):
    """What a lookup tells. prefix: how many leading keys are there."""

    def __init__(self, array: Any, n: int, prefix: int) -> None:
        super().__init__(
            Hit(hit.status, hit.size_bytes, TIERS[hit.tier], bool(hit.flags & lib.SPW_RESULT_PENDING))
            for hit in (array[i] for i in range(n))
        )
        self.prefix = prefix
        self._array = array

    def window_length(self, window: int) -> int:
        """The largest count m such that the last `window` of the first m keys are there (all m if m is less)."""
        return int(lib.spw_window_length(self._array, len(self), window))


class Stat(NamedTuple):
    """Of the space's pool, in bytes but for counts: see struct spw_stat."""

    dram_budget: int
    dram_used: int
    cxl_budget: int
    cxl_used: int
    nvme_budget: int
    nvme_used: int
    gpu_budget: int
    gpu_used: int
    leased: int
    dirty: int
    objects: int
    resident: int
    hits_dram: int
    hits_cxl: int
    hits_nvme: int
    misses: int
    bytes_read: int
    bytes_written: int


class Space(Unpicklable):
    """A set of objects of one layout: made by Pool.space(). Lives as long as its session.

    digest: its identity within the pool, 32 bytes. item_bytes: the size of its blocks, or 0: each has its own.
    """

    def __init__(self, pool: "Pool", digest: bytes, item_bytes: int, handle: Any) -> None:
        self.pool = pool
        self.session: "Session" = pool.session
        self.digest = digest
        self.item_bytes = item_bytes
        self._handle: Any = handle
        with self.session._in_call():
            # Objects above this size are kept, and acquired, in pieces of this size, in bytes.
            self.piece_bytes: int = int(lib.spw_space_piece_bytes(handle))

    def tensor(self, name: Key, nbytes: int) -> Tensor:
        """Opens or creates a tensor: mutable, named, of fixed size. EINVAL: it exists with another size."""
        tensor = Tensor(self, key_parts(name), nbytes)
        self._call(lib.spw_tensor_open, tensor._key, nbytes)
        return tensor

    def queue(self, entries: int = 256) -> "Queue":
        """A queue for asyncio, with so many jobs at a time; what is more waits for its turn."""
        from .queue import Queue

        return Queue(self, entries)

    # ── bytes in the caller's memory

    def put(
        self, keys: Iterable[Key], buffers: Iterable[Any], *, chain: bool = False, timeout: Optional[float] = None
    ) -> Statuses:
        """Stores a copy of buffers as blocks, of any size. Of each: 0; -EEXIST: it is there already; -ENOSPC; …"""
        c_keys, n = key_array(keys)
        statuses = ffi.new("int32_t[]", n)
        with Memory() as memory:
            iovecs = memory.iovec_array(buffers, n, False)
            self._call(lib.spw_put, c_keys, iovecs, n, flags(chain), milliseconds(timeout, 0), statuses)
        return Statuses(statuses)

    def get(
        self,
        keys: Iterable[Key],
        buffers: Iterable[Any],
        *,
        chain: bool = False,
        no_wait: bool = False,
        timeout: Optional[float] = None,
    ) -> Statuses:
        """Copies blocks into writable buffers, which have room for them; an object may be shorter.

        Of each: 0; -ENOENT; -EMSGSIZE: larger than the room; -EBADMSG: a checksum failed; -EAGAIN with no_wait: not in
        memory; … The result's `sizes` are the objects', in bytes.
        """
        c_keys, n = key_array(keys)
        statuses = ffi.new("int32_t[]", n)
        wanted = flags(chain, no_wait=no_wait)
        with Memory() as memory:
            iovecs = memory.iovec_array(buffers, n, True)
            self._call(lib.spw_get, c_keys, iovecs, n, wanted, milliseconds(timeout), statuses)
        return Statuses(statuses, [iovecs[i].size_bytes for i in range(n)])

    # ── bytes in place

    def reserve(
        self,
        keys: Iterable[Key],
        sizes: Optional[Sequence[int]] = None,
        *,
        chain: bool = False,
        all_or_nothing: bool = False,
        timeout: Optional[float] = None,
    ) -> Reservation:
        """Room for new blocks of one piece, to be written in place and committed.

        sizes: in bytes; None if the space has a fixed one. all_or_nothing: all of the list is granted, or none.
        timeout: 0 does not wait for room.
        """
        c_keys, n = key_array(keys)
        c_sizes = size_array(sizes, n)
        grant = Grant(self, n, reserved=True)
        wait_ms = milliseconds(timeout, 0)
        self._call(lib.spw_reserve, c_keys, c_sizes, n, flags(chain, all_or_nothing), wait_ms, grant.array)
        grant.granted()
        return Reservation(grant)

    def acquire(
        self,
        keys: Iterable[Key],
        *,
        write: bool = False,
        chain: bool = False,
        all_or_nothing: bool = False,
        no_wait: bool = False,
        timeout: Optional[float] = None,
    ) -> Views:
        """Leases on objects of one piece, fetched from a device where they are not in memory.

        write: of tensors, to change them. all_or_nothing: all of the list is granted, or none. no_wait: only what is in
        memory. Of each: 0; -ENOENT; -EBADMSG; -EIO; -ENOSPC: no room in time (View.limit tells which); -EMSGSIZE: it
        has more than one piece (Tensor.acquire()).
        """
        c_keys, n = key_array(keys)
        grant = Grant(self, n, writable=write)
        wanted = flags(chain, all_or_nothing, write, no_wait)
        self._call(lib.spw_acquire, c_keys, n, wanted, milliseconds(timeout), grant.array)
        grant.granted()
        return Views(grant)

    def put_from_view(
        self,
        keys: Iterable[Key],
        view: View,
        offset: int = 0,
        sizes: Optional[Sequence[int]] = None,
        *,
        timeout: Optional[float] = None,
    ) -> Statuses:
        """Stores blocks of one piece out of a leased range of a tensor, one after the other from its byte offset on.

        Sizes, the offset, and where the view begins in its tensor are multiples of 4096.
        """
        return self._move(lib.spw_put_from_view, keys, view, offset, sizes, timeout)

    def put_from_views(
        self, keys: Iterable[Key], views: Sequence[View], *, timeout: Optional[float] = None
    ) -> Statuses:
        """Stores a block out of each of these leased ranges of tensors, the whole of it, all at once."""
        c_keys, n = key_array(keys)
        if n != len(views):
            raise ValueError(f"{n} keys for {len(views)} views")
        arenas = ffi.new("struct spw_view[]", n)
        statuses = ffi.new("int32_t[]", n)
        with Memory() as memory:
            for i, view in enumerate(views):
                memory.add(view, False)  # so that nobody ends the lease meanwhile
                arenas[i] = view._grant.array[view._index]
            self._call(lib.spw_put_from_views, c_keys, arenas, n, milliseconds(timeout), statuses)
        return Statuses(statuses)

    def get_to_view(
        self,
        keys: Iterable[Key],
        view: View,
        offset: int = 0,
        sizes: Optional[Sequence[int]] = None,
        *,
        timeout: Optional[float] = None,
    ) -> Statuses:
        """The same the other way: into a range of a tensor that is leased for writing."""
        return self._move(lib.spw_get_to_view, keys, view, offset, sizes, timeout)

    def _move(
        self,
        function: Callable[..., int],
        keys: Iterable[Key],
        view: View,
        offset: int,
        sizes: Optional[Sequence[int]],
        timeout: Optional[float],
    ) -> Statuses:
        c_keys, n = key_array(keys)
        c_sizes = size_array(sizes, n)
        statuses = ffi.new("int32_t[]", n)
        arena = view._grant.array + view._index
        with Memory() as memory:
            memory.add(view, False)  # so that nobody ends the lease meanwhile
            self._call(function, c_keys, c_sizes, n, arena, offset, milliseconds(timeout), statuses)
        return Statuses(statuses)

    # ── lists of keys

    def lookup(self, keys: Iterable[Key], *, chain: bool = False) -> Hits:
        """What is there, without a lease."""
        c_keys, n = key_array(keys)
        hits = ffi.new("struct spw_hit[]", n)
        prefix = self._call(lib.spw_lookup, c_keys, n, flags(chain), hits)
        return Hits(hits, n, prefix)

    def touch(self, keys: Iterable[Key], *, chain: bool = False) -> None:
        """Counts as a use of objects of one piece."""
        c_keys, n = key_array(keys)
        self._call(lib.spw_touch, c_keys, n, flags(chain))

    def prefetch(self, keys: Iterable[Key], *, chain: bool = False, deadline: Optional[float] = None) -> Statuses:
        """Brings objects of one piece into memory; returns when they are there, or `deadline` seconds have passed."""
        c_keys, n = key_array(keys)
        statuses = ffi.new("int32_t[]", n)
        deadline_ms = 0 if deadline is None else milliseconds(deadline)
        self._call(lib.spw_prefetch, c_keys, n, flags(chain), deadline_ms, statuses)
        return Statuses(statuses)

    def advise(self, keys: Iterable[Key], advice: str, value: int = 0) -> None:
        """A hint: "not_again", "uses_left" (value: uses), "keep_until" (ms), "score" (a score): docs/client.md."""
        c_keys, n = key_array(keys)
        self._call(lib.spw_advise, c_keys, n, choice("advice", ADVICE, advice), value)

    def pin(self, keys: Iterable[Key], duration: float) -> Statuses:
        """Objects of one piece are not evicted for so many seconds, a day at most; 0 unpins."""
        c_keys, n = key_array(keys)
        statuses = ffi.new("int32_t[]", n)
        self._call(lib.spw_pin, c_keys, n, milliseconds(duration, 0), statuses)
        return Statuses(statuses)

    def plan(self, keys: Iterable[Key]) -> int:
        """Declares the order in which the space's objects will be asked for, again and again: docs/client.md.

        An object of several pieces stands for all of them; one may be named more than once, or not be there yet. How
        many accesses are followed; 0: the pool's policy for the space's class makes no plans, or there are less than 8.
        An empty list takes the plan back. E2BIG: too many; ENOSPC: too many other spaces of the pool have one; ESTALE:
        another session declared one at the same time.
        """
        c_keys, n = key_array(keys)
        return self._call(lib.spw_plan, c_keys, n)

    def delete(self, keys: Iterable[Key]) -> Statuses:
        """Deletes objects. Of each: 0; -ENOENT; …"""
        c_keys, n = key_array(keys)
        statuses = ffi.new("int32_t[]", n)
        self._call(lib.spw_delete, c_keys, n, statuses)
        return Statuses(statuses)

    # ── the whole

    def sync(self, names: Optional[Iterable[Key]] = None, *, timeout: Optional[float] = None) -> None:
        """Makes objects of a durable space durable, and atomically so; None: all of the space's.

        EINVAL: the space is not durable. E2BIG: more than one request takes.
        """
        c_keys, n = key_array([] if names is None else names)
        if names is None or n > 0:  # a list without names is not the list of all
            self._call(lib.spw_sync, c_keys, n, milliseconds(timeout))

    def stat(self) -> Stat:
        """What the pool has, and what it did."""
        stat = ffi.new("struct spw_stat *")
        self._call(lib.spw_stat, stat)
        return Stat(*(getattr(stat, field) for field in Stat._fields))

    def ping(self) -> None:
        """A round trip to the engine that serves the space."""
        self._call(lib.spw_nop)

    def _call(self, function: Callable[..., int], *args: Any) -> int:
        return self.session._call(function, self._handle, *args)

    def __repr__(self) -> str:
        return f"<Space {self.digest.hex()[:16]} of {self.pool!r}>"
