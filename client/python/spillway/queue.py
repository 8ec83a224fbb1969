# SPDX-License-Identifier: Apache-2.0
"""Queues: the store for asyncio, without threads of Python's.

    async with space.queue() as queue:
        await queue.get(keys, buffers)
        with await queue.acquire(keys) as views: ...

A queue's descriptor is watched by the running event loop, which alone may use the queue. Each method starts a job and
waits for its end; as many run at the same time as the queue has entries. Keys, buffers and views that a job was given
are the job's until it ends. So a task that is cancelled cancels its job, and goes on when the job has ended, which is
soon: whoever sees the CancelledError may use the buffers again. Leases that the job got meanwhile are given back.

    submitted ── its end, seen by spw_queue_next() ──▶ future done ──▶ freed

Before the loop sleeps spw_queue_arm() must have said that there is nothing to take: once for all that the loop submits
in one turn.
"""
from __future__ import annotations

import asyncio
import errno
import sys
import warnings
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Optional

from ._convert import Key, Memory, flags, key_array, milliseconds
from ._native import ffi, lib
from .errors import SpillwayError, Statuses, last_error
from .views import Grant, Unpicklable, Views

if TYPE_CHECKING:
    from .space import Hits, Space


class _Job:
    """A job, all that it uses until it ends, and who waits for that."""

    __slots__ = ("handle", "args", "on_end", "future", "ended")

    def __init__(
        self, handle: Any, args: Any, on_end: Optional[Callable[[], None]], future: "asyncio.Future[int]"
    ) -> None:
        self.handle = handle
        self.args = args
        self.on_end = on_end
        self.future = future
        self.ended = False

    def end(self, value: Optional[int], error: Optional[SpillwayError]) -> None:
        """Has a value or an error. Nobody may be waiting: who was cancelled looks at `ended`."""
        self.ended = True
        if self.on_end is not None:
            self.on_end()
        if self.future.done() or self.future.get_loop().is_closed():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(value or 0)


class Queue(Unpicklable):
    """Asynchronous calls on one space: made by Space.queue(); a context manager, also for `async with`."""

    def __init__(self, space: "Space", entries: int = 256) -> None:
        self.space = space
        self._session = space.session
        self._entries = entries
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._slots: Optional[asyncio.Semaphore] = None
        self._turn_is_due = False
        self._jobs: Dict[int, _Job] = {}  # by the address of the library's
        out = ffi.new("spw_queue **")
        self._session._call(lib.spw_queue_new, self._session._handle, space._handle, entries, out)
        self._handle: Any = out[0]
        self._fd = lib.spw_queue_fd(self._handle)
        self._session._queues.add(self)

    # ── calls

    async def get(
        self,
        keys: Iterable[Key],
        buffers: Iterable[Any],
        *,
        chain: bool = False,
        no_wait: bool = False,
        timeout: Optional[float] = None,
    ) -> Statuses:
        """As Space.get()."""
        c_keys, n = key_array(keys)
        statuses = ffi.new("int32_t[]", n)
        wanted = flags(chain, no_wait=no_wait)
        wait_ms = milliseconds(timeout)
        memory = Memory()
        iovecs = memory.iovec_array(buffers, n, True)
        await self._run(memory.close, lib.spw_submit_get, c_keys, iovecs, n, wanted, wait_ms, statuses)
        return Statuses(statuses, [iovecs[i].size_bytes for i in range(n)])

    async def put(
        self, keys: Iterable[Key], buffers: Iterable[Any], *, chain: bool = False, timeout: Optional[float] = None
    ) -> Statuses:
        """As Space.put()."""
        c_keys, n = key_array(keys)
        statuses = ffi.new("int32_t[]", n)
        wait_ms = milliseconds(timeout, 0)
        memory = Memory()
        iovecs = memory.iovec_array(buffers, n, False)
        await self._run(memory.close, lib.spw_submit_put, c_keys, iovecs, n, flags(chain), wait_ms, statuses)
        return Statuses(statuses)

    async def acquire(
        self,
        keys: Iterable[Key],
        *,
        write: bool = False,
        chain: bool = False,
        all_or_nothing: bool = False,
        no_wait: bool = False,
        timeout: Optional[float] = None,
    ) -> Views:
        """As Space.acquire(). To release them is a call that does not wait for a device, but for the engine."""
        c_keys, n = key_array(keys)
        grant = Grant(self.space, n, writable=write)
        wanted = flags(chain, all_or_nothing, write, no_wait)
        wait_ms = milliseconds(timeout)
        try:
            await self._run(grant.granted, lib.spw_submit_acquire, c_keys, n, wanted, wait_ms, grant.array)
        except (SpillwayError, asyncio.CancelledError):
            grant.give_back()  # what it had got until then
            raise
        return Views(grant)

    async def lookup(self, keys: Iterable[Key], *, chain: bool = False) -> "Hits":
        """As Space.lookup()."""
        from .space import Hits

        c_keys, n = key_array(keys)
        hits = ffi.new("struct spw_hit[]", n)
        prefix = await self._run(None, lib.spw_submit_lookup, c_keys, n, flags(chain), hits)
        return Hits(hits, n, prefix)

    async def prefetch(
        self, keys: Iterable[Key], *, chain: bool = False, deadline: Optional[float] = None
    ) -> Statuses:
        """As Space.prefetch()."""
        c_keys, n = key_array(keys)
        statuses = ffi.new("int32_t[]", n)
        deadline_ms = 0 if deadline is None else milliseconds(deadline)
        await self._run(None, lib.spw_submit_prefetch, c_keys, n, flags(chain), deadline_ms, statuses)
        return Statuses(statuses)

    async def sync(self, names: Optional[Iterable[Key]] = None, *, timeout: Optional[float] = None) -> None:
        """As Space.sync()."""
        c_keys, n = key_array([] if names is None else names)
        if names is None or n > 0:
            await self._run(None, lib.spw_submit_sync, c_keys, n, milliseconds(timeout))

    # ── jobs

    async def _run(self, on_end: Optional[Callable[[], None]], function: Callable[..., int], *args: Any) -> int:
        """Starts a job, waits for its end, and returns its value, or raises its error. on_end is called at its end."""
        self._bind()
        assert self._slots is not None
        async with self._slots:
            job = self._submit(on_end, function, *args)
            try:
                return await job.future
            except asyncio.CancelledError:
                await self._cancel(job)
                raise

    async def _cancel(self, job: "_Job") -> None:
        """Ends it soon, and waits until it has ended, however often that is cancelled."""
        assert self._loop is not None
        if not job.ended:
            lib.spw_job_cancel(job.handle)
            self._turn_soon()
        while not job.ended:
            job.future = self._loop.create_future()
            try:
                await job.future
            except (asyncio.CancelledError, SpillwayError):
                pass

    def _bind(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._check_open()
            self._loop = loop
            self._slots = asyncio.Semaphore(self._entries)
            loop.add_reader(self._fd, self._turn)
        elif self._loop is not loop:
            raise RuntimeError("the queue belongs to another event loop")

    def _check_open(self) -> None:
        if self._handle is None:
            raise SpillwayError(errno.ENOTCONN, "the queue was closed")

    def _submit(self, on_end: Optional[Callable[[], None]], function: Callable[..., int], *args: Any) -> "_Job":
        assert self._loop is not None
        self._check_open()
        out = ffi.new("spw_job **")
        try:
            self._session._call(function, self._handle, self.space._handle, *args, ffi.NULL, out)
        except BaseException:
            if on_end is not None:
                on_end()
            raise
        job = _Job(out[0], args, on_end, self._loop.create_future())
        self._jobs[_address(job.handle)] = job
        self._turn_soon()
        return job

    def _turn_soon(self) -> None:
        if not self._turn_is_due and self._loop is not None:
            self._turn_is_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Takes the jobs that have ended, and arms the descriptor for the others."""
        self._turn_is_due = False
        if self._handle is None:
            return
        out = ffi.new("spw_job **")
        while lib.spw_queue_next(self._handle, out) == 0:
            self._take(out[0])
        if self._jobs and lib.spw_queue_arm(self._handle) != 0:
            self._turn_soon()

    def _take(self, handle: Any) -> None:
        job = self._jobs.pop(_address(handle))
        status = lib.spw_job_status(handle)
        if status < 0:
            job.end(None, last_error(status))
        else:
            job.end(lib.spw_job_value(handle), None)
        lib.spw_job_free(handle)

    # ── the end

    def close(self) -> None:
        """Cancels what runs, waits for its end, frees the queue. In the loop's thread, or when the loop is closed."""
        if self._handle is None:
            return
        loop = self._loop
        if loop is not None and not loop.is_closed():
            if loop.is_running() and loop is not _running_loop():
                raise RuntimeError("a queue is closed in the thread of its event loop")
            loop.remove_reader(self._fd)
        handle, self._handle = self._handle, None
        lib.spw_queue_free(handle)
        jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            job.end(None, SpillwayError(errno.ECANCELED, "the queue was closed"))

    def __enter__(self) -> "Queue":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    async def __aenter__(self) -> "Queue":
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is None or sys.is_finalizing() or not self._session._is_usable():
            return
        warnings.warn("a queue was not closed", ResourceWarning)
        handle, self._handle = self._handle, None
        lib.spw_queue_free(handle)

    def __repr__(self) -> str:
        return f"<Queue of {self.space!r}, {len(self._jobs)} jobs>"


def _address(job: Any) -> int:
    return int(ffi.cast("uintptr_t", job))


def _running_loop() -> Optional[asyncio.AbstractEventLoop]:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
