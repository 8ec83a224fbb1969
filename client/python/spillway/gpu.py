# SPDX-License-Identifier: Apache-2.0
"""Between a GPU's memory and the store, at the speed of the link: <spillway/gpu.h>.

    with spillway.gpu.attach(space) as gpu:                   # the current context's GPU
        job = gpu.put([(tensor, 0, array)], stream)           # after what `stream` has now
        job.join(stream)                                      # what comes after may overwrite the array
        job.wait().check()                                    # others see the bytes

Memory of the GPU is whatever has `__cuda_array_interface__` and is contiguous, or a Region: an address and a size, both
multiples of 16. It need not be pinned or registered. A stream is its handle, a number (`stream.cuda_stream` of torch's,
`stream.ptr` of CuPy's); 0 is the legacy default stream. The stream that an array itself names is not looked at.

Attaching uses the calling thread's current context, which is there once a framework has used the GPU in that thread.
Calls wait without the GIL, and may come from any thread.

Lifetime. What a job was given is kept until it is done, or until somebody has seen that its source is free: of put and
spill that is when the bytes have been read. The attachment keeps it, so a job that nobody refers to goes on.
"""
from __future__ import annotations

import asyncio
import errno
import sys
import threading
import time
import warnings
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Generator,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Set,
    Tuple,
    Union,
)

from ._convert import Key, flags, key_array, milliseconds
from ._native import ffi, lib
from .errors import Busy, NoGpu, SpillwayError, Statuses, last_error
from .session import InUse
from .views import Unpicklable, View

if TYPE_CHECKING:
    from .space import Space
    from .tensor import Tensor

RETRY_SECONDS = 0.01  # between looks for the daemon's helper, while that is being started


class Region(NamedTuple):
    """Bytes of a GPU's memory. owner: is kept for as long as they are used."""

    address: int
    nbytes: int
    owner: Any = None


class Piece(NamedTuple):
    """Of each block of a layout: block b has `nbytes` at its memory's address + b * stride; multiples of 16."""

    memory: Any
    stride: int
    nbytes: int


# What a range is of (a tensor, or a block's key), where in that it begins, and where it is on the GPU, or is to be.
Range = Tuple[Union["Tensor", Key], int, Any]


def region(memory: Any) -> Region:
    """Where the bytes of an array on a GPU are. ValueError: they are not contiguous."""
    if isinstance(memory, Region):
        return memory
    interface = getattr(memory, "__cuda_array_interface__", None)
    if interface is None:
        raise TypeError(f"a {type(memory).__name__} has no __cuda_array_interface__: it is no memory of a GPU")
    shape = interface["shape"]
    nbytes = int(interface["typestr"][2:])
    contiguous = True
    for i in reversed(range(len(shape))):
        strides = interface.get("strides")
        contiguous &= strides is None or shape[i] < 2 or strides[i] == nbytes
        nbytes *= shape[i]
    if nbytes and not contiguous:
        raise ValueError("the array is not contiguous")
    return Region(interface["data"][0], nbytes, memory)


def attach(
    space: "Space",
    *,
    uuid: Optional[bytes] = None,
    slots: int = 0,
    slot_bytes: int = 0,
    thread_blocks: int = 0,
    map_only: bool = False,
    current_stream: Optional[Callable[[], int]] = None,
    timeout: float = 20.0,
) -> "Gpu":
    """Attaches to the GPU of the calling thread's current context, for spaces of the same pool and engine as this one.

    uuid: the GPU's 16 bytes, if it must be that one. slots, slot_bytes: of the staging memory, for each direction;
    thread_blocks: of the kernels; 0: the defaults. map_only: for map() alone, where the daemon need not have a GPU.
    current_stream: says which stream a call is of that names none; None: the legacy default stream.
    timeout: for the daemon's helper to start, in seconds; Busy: it has not.

    NoGpu: no driver, or no such GPU, here or at the daemon; NoSpace: the pool's `gpu` budget is less than the staging
    memory; SpillwayError with EINVAL: the thread has no context.
    """
    options = ffi.new("struct spw_gpu_options *")
    name = ffi.NULL if uuid is None else ffi.from_buffer("uint8_t[]", uuid)
    if uuid is not None and len(uuid) != lib.SPW_UUID_BYTES:
        raise ValueError(f"a GPU's UUID has {lib.SPW_UUID_BYTES} bytes, not {len(uuid)}")
    options.uuid = name
    options.slots, options.slot_bytes, options.thread_blocks = slots, slot_bytes, thread_blocks
    options.flags = lib.SPW_GPU_MAP_ONLY if map_only else 0
    out = ffi.new("spw_gpu **")
    end = time.monotonic() + timeout
    while True:
        try:
            space.session._call(lib.spw_gpu_attach, space._handle, options, out)
            return Gpu(space, out[0], current_stream)
        except Busy:
            if time.monotonic() > end:
                raise
            time.sleep(RETRY_SECONDS)
        except SpillwayError as error:
            if error.errno in (errno.ENOSYS, errno.ENODEV):
                raise NoGpu(error.errno, error.strerror, error.limit) from None
            raise


class Gpu(InUse):
    """An attachment to a GPU: made by attach(), a context manager. It is detached with its session at the latest."""

    _CLOSED = "the attachment to the GPU was closed"

    def __init__(self, space: "Space", handle: Any, current_stream: Optional[Callable[[], int]] = None) -> None:
        self.space = space
        self._handle = handle
        self._current_stream = current_stream or (lambda: 0)
        self._jobs: Set["Job"] = set()  # that have not been seen to be done
        self._locks_init()
        with space.session._lock:
            space.session._gpus.add(self)
            space.session._gpu_handles.add(handle)

    def _locks_init(self) -> None:
        self._lock = threading.RLock()  # of it and its jobs; not held in a call that waits, but for the last one
        self._idle = threading.Condition(self._lock)
        self._calls = 0
        self._closing = False

    # ── tensors

    def put(
        self,
        ranges: Iterable[Range],
        stream: Optional[int] = None,
        *,
        space: Optional["Space"] = None,
        timeout: Optional[float] = None,
    ) -> "Job":
        """Starts to write ranges of tensors from the GPU's memory. space: of the tensors; None: the attachment's.

        A status for each range; EROFS: a block cannot be written.
        """
        array, owners = _range_array(ranges)
        statuses = ffi.new("int32_t[]", len(array))
        args = (self._space_of(space), array, len(array), self._stream(stream), milliseconds(timeout), statuses)
        return self._start(lib.spw_gpu_put_ranges, (self._handle, *args), statuses, owners)

    def get(
        self,
        ranges: Iterable[Range],
        stream: Optional[int] = None,
        *,
        space: Optional["Space"] = None,
        no_wait: bool = False,
        timeout: Optional[float] = None,
    ) -> "Job":
        """Starts to read ranges of tensors and blocks into the GPU's memory. no_wait: only what is in memory."""
        array, owners = _range_array(ranges)
        statuses = ffi.new("int32_t[]", len(array))
        wanted, wait_ms = flags(no_wait=no_wait), milliseconds(timeout)
        args = (self._space_of(space), array, len(array), self._stream(stream), wanted, wait_ms, statuses)
        return self._start(lib.spw_gpu_get_ranges, (self._handle, *args), statuses, owners)

    def activate(
        self,
        ranges: Iterable[Range],
        stream: Optional[int] = None,
        *,
        space: Optional["Space"] = None,
        timeout: Optional[float] = None,
    ) -> "Job":
        """Starts to read a set as one, as a model's weights: all of it, or its wait() raises the first error.

        Nothing is touched unless all is there and large enough. Has no statuses.
        """
        array, owners = _range_array(ranges)
        args = (self._space_of(space), array, len(array), self._stream(stream), milliseconds(timeout))
        return self._start(lib.spw_gpu_activate, (self._handle, *args), (), owners)

    def _stream(self, stream: Optional[int]) -> Any:
        return ffi.cast("struct CUstream_st *", self._current_stream() if stream is None else stream)

    def _space_of(self, space: Optional["Space"]) -> Any:
        return (space or self.space)._handle

    # ── blocks

    def layout(self, pieces: Iterable[Any], n_blocks: int, *, space: Optional["Space"] = None) -> "Layout":
        """Where blocks 0 to n_blocks - 1 of a cache lie: in the store a block is its pieces, one behind the other.

        pieces: arrays that each have n_blocks pieces behind each other, as a layer's tensor has, or `Piece`s. Their
        sizes add up to the space's item_bytes.
        """
        return Layout(self, list(pieces), n_blocks, space or self.space)

    # ── memory

    def alloc(self, nbytes: int) -> "Allocation":
        """Memory of the GPU that the daemon hands out, zeroed: ranges of it go without staging. NoSpace: `gpu` budget.

        Better few and large ones: a session has at most 16 lanes, of which each allocation takes one.
        """
        return Allocation(self, nbytes)

    def map(self, view: View) -> int:
        """The address that the view's bytes have on the GPU, as long as its lease lives.

        The first view of a window of the pool's memory (1 GiB or less) registers all of it with the driver; from then
        on a framework's own copies from and to `view.data` there are at the speed of pinned memory.
        """
        out = ffi.new("uint64_t *")
        view.address  # the bytes may be written from now on
        self._call(lib.spw_gpu_map, self._handle, view._grant.array + view._index, out)
        return int(out[0])

    def unmap(self) -> None:
        """Addresses that map() gave are not valid any more, and nothing that uses them is under way."""
        with self._in_call():
            lib.spw_gpu_unmap(self._handle)

    @property
    def mapped_bytes(self) -> int:
        """What the session has registered with the driver now."""
        with self._in_call():
            return int(lib.spw_gpu_mapped_bytes(self._handle))

    # ── the end

    def close(self) -> None:
        """Cancels its jobs, waits for them, and frees all that is the attachment's: layouts, allocations, addresses."""
        with self._lock:
            while self._closing:
                self._idle.wait()
            if self._handle is None:
                return
            self._closing = True
            for job in self._jobs:
                lib.spw_gpu_job_cancel(job._handle)
            while self._calls > 0:
                self._idle.wait()
            self._detach()
            for job in self._jobs:
                job._over(SpillwayError(errno.ECANCELED, "the attachment to the GPU was closed"))
            self._jobs.clear()
            self._closing = False
            self._idle.notify_all()

    def _detach(self) -> None:
        handle, self._handle = self._handle, None
        handles = self.space.session._gpu_handles
        if handle in handles:
            handles.remove(handle)
            lib.spw_gpu_detach(handle)

    def __enter__(self) -> "Gpu":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is None or sys.is_finalizing() or not self.space.session._is_usable():
            return
        warnings.warn("an attachment to a GPU was not closed", ResourceWarning)
        self._detach()

    def __repr__(self) -> str:
        return f"<Gpu of {self.space!r}, {'closed' if self._handle is None else f'{len(self._jobs)} jobs'}>"

    # ── calls

    def _call(self, function: Callable[..., int], *args: Any) -> int:
        with self._in_call():
            return self.space.session._call(function, *args)

    def _start(self, function: Callable[..., int], args: Tuple[Any, ...], statuses: Any, kept: Any) -> "Job":
        for job in list(self._jobs):
            job.done  # lets go of it if it is
        out = ffi.new("spw_gpu_job **")
        with self._in_call():
            self.space.session._call(function, *args, out)
            job = Job(self, out[0], statuses, kept)
            with self._lock:
                self._jobs.add(job)
        return job


class Job(Unpicklable):
    """Bytes on their way. `await job` is wait(); a task that is cancelled cancels it, and goes on when it is done."""

    __slots__ = ("_gpu", "_handle", "_statuses", "_kept", "_users", "_error", "__weakref__")

    def __init__(self, gpu: Gpu, handle: Any, statuses: Any, kept: Any) -> None:
        self._gpu = gpu
        self._handle = handle  # None: it is done
        self._statuses = statuses
        self._kept = kept
        self._users = 0  # who is in a call with the handle
        self._error: Optional[SpillwayError] = None

    def wait(self, timeout: Optional[float] = None) -> Statuses:
        """Until it is done: a status for each element. Raises what all of it failed with; Timeout: it may go on."""
        self._use(lib.spw_gpu_job_wait, lib.SPW_GPU_DONE, milliseconds(timeout, 0))
        return Statuses(self._statuses)

    def wait_source_free(self, timeout: Optional[float] = None) -> None:
        """Until what it reads may be overwritten: a put's and a spill's end on the GPU, a get's and a fetch's end."""
        self._use(lib.spw_gpu_job_wait, lib.SPW_GPU_SOURCE_FREE, milliseconds(timeout, 0))
        self._kept = None

    def join(self, stream: Optional[int] = None, timeout: Optional[float] = None) -> None:
        """What comes into the stream from now on waits for it: for the bytes, or until they have been read.

        Returns when all of its copies are on their way, for which what is on a device must be read first. Busy: with
        timeout 0, they are not.
        """
        self._use(lib.spw_gpu_job_join, self._gpu._stream(stream), milliseconds(timeout, 0))

    @property
    def done(self) -> bool:
        """Is it? Makes no system call, and raises nothing."""
        if self._begin():
            self._end()
        return self._handle is None

    @property
    def source_free(self) -> bool:
        """May what it reads be overwritten? Makes no system call, and raises nothing."""
        if self._begin():
            try:
                if lib.spw_gpu_job_status(self._handle, lib.SPW_GPU_SOURCE_FREE) != -errno.EINPROGRESS:
                    self._kept = None
            finally:
                self._end()
        return self._kept is None

    @property
    def progress(self) -> Tuple[int, int]:
        """How many bytes have arrived, and of how many; (0, 0) once it is done."""
        total = ffi.new("uint64_t *")
        arrived = 0
        if self._begin():
            try:
                arrived = lib.spw_gpu_job_progress(self._handle, total)
            finally:
                self._end()
        return int(arrived), int(total[0])

    def cancel(self) -> None:
        """A request: what is on its way over the link still arrives, and it has its end."""
        if self._begin():
            try:
                lib.spw_gpu_job_cancel(self._handle)
            finally:
                self._end()

    def __await__(self) -> Generator[Any, None, Statuses]:
        return self._awaited().__await__()

    async def _awaited(self) -> Statuses:
        waiting = asyncio.get_running_loop().run_in_executor(None, self.wait)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            self.cancel()
            while not waiting.done():
                try:
                    await asyncio.wait([waiting])
                except asyncio.CancelledError:
                    pass
            waiting.exception()
            raise

    # ── the library's handle is freed by the last who uses it, once the job is done

    def _use(self, function: Callable[..., int], *args: Any) -> None:
        if self._begin():
            try:
                self._gpu.space.session._call(function, self._handle, *args)
            finally:
                self._end()
        elif self._error is not None:
            raise self._error

    def _begin(self) -> bool:
        gpu = self._gpu
        with gpu._lock:
            while gpu._closing and self._handle is not None:
                gpu._idle.wait()
            if self._handle is None:
                return False
            gpu._calls += 1
            self._users += 1
            return True

    def _end(self) -> None:
        gpu = self._gpu
        with gpu._lock:
            self._users -= 1
            gpu._leave()
            if self._users > 0:
                return
            status = lib.spw_gpu_job_status(self._handle, lib.SPW_GPU_DONE)
            if status != -errno.EINPROGRESS:
                lib.spw_gpu_job_free(self._handle)
                self._over(last_error(status) if status < 0 else None)
                gpu._jobs.discard(self)

    def _over(self, error: Optional[SpillwayError]) -> None:
        self._handle = self._kept = None
        self._error = error

    def __repr__(self) -> str:
        return f"<Job, {'done' if self._handle is None else 'on its way'}>"


class Layout(Unpicklable):
    """Where the blocks of a cache lie in a GPU's memory: made by Gpu.layout()."""

    def __init__(self, gpu: Gpu, pieces: List[Any], n_blocks: int, space: "Space") -> None:
        self.gpu = gpu
        self._owners = []
        array = ffi.new("struct spw_gpu_piece[]", len(pieces))
        for c, piece in zip(array, pieces):
            memory = region(piece.memory if isinstance(piece, Piece) else piece)
            if isinstance(piece, Piece):
                c.stride_bytes, c.bytes = piece.stride, piece.nbytes
            else:
                c.stride_bytes = c.bytes = memory.nbytes // max(n_blocks, 1)
            c.base = memory.address
            self._owners.append(memory.owner)
        out = ffi.new("spw_gpu_layout **")
        gpu._call(lib.spw_gpu_layout_new, gpu._handle, space._handle, array, len(pieces), n_blocks, out)
        self._handle = out[0]

    def spill(
        self,
        keys: Iterable[Key],
        block_ids: Iterable[int],
        stream: Optional[int] = None,
        *,
        chain: bool = False,
        timeout: Optional[float] = None,
    ) -> Job:
        """Starts to store blocks. Of each: 0; -EEXIST: it is there already; -EINPROGRESS; -ENOSPC; …"""
        return self._start(lib.spw_spill, keys, block_ids, stream, flags(chain), timeout)

    def fetch(
        self,
        keys: Iterable[Key],
        block_ids: Iterable[int],
        stream: Optional[int] = None,
        *,
        chain: bool = False,
        no_wait: bool = False,
        timeout: Optional[float] = None,
    ) -> Job:
        """Starts to bring blocks back. Of each: 0; -ENOENT; -EAGAIN: with no_wait, it is not in memory; …"""
        return self._start(lib.spw_fetch, keys, block_ids, stream, flags(chain, no_wait=no_wait), timeout)

    def _start(
        self,
        function: Callable[..., int],
        keys: Iterable[Key],
        block_ids: Iterable[int],
        stream: Optional[int],
        wanted: int,
        timeout: Optional[float],
    ) -> Job:
        c_keys, n = key_array(keys)
        ids = ffi.new("uint32_t[]", list(block_ids))
        if len(ids) != n:
            raise ValueError(f"{len(ids)} numbers of blocks for {n} keys")
        statuses = ffi.new("int32_t[]", n)
        with self.gpu._in_call():
            if self._handle is None:
                raise ValueError("the layout was closed")
        args = (self._handle, c_keys, ids, n, self.gpu._stream(stream), wanted, milliseconds(timeout), statuses)
        return self.gpu._start(function, args, statuses, self)

    def close(self) -> None:
        """Frees it; no job uses it any more. Else it goes with the attachment."""
        with self.gpu._in_call():
            handle, self._handle = self._handle, None
            if handle is not None:
                lib.spw_gpu_layout_free(handle)
        self._owners = []


class Allocation(Unpicklable):
    """Memory of a GPU that the daemon's helper has too: made by Gpu.alloc(). Frameworks take it by its interface."""

    def __init__(self, gpu: Gpu, nbytes: int) -> None:
        self.gpu = gpu
        self.nbytes = nbytes
        out = ffi.new("spw_gpu_memory **")
        gpu._call(lib.spw_gpu_alloc, gpu._handle, nbytes, out)
        self._handle = out[0]
        self.address = int(lib.spw_gpu_memory_address(out[0]))

    @property
    def __cuda_array_interface__(self) -> Dict[str, Any]:
        if self._handle is None or self.gpu._handle is None:
            raise AttributeError("the memory was freed")
        return {"version": 3, "shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False), "strides": None}

    def region(self, offset: int = 0, nbytes: Optional[int] = None) -> Region:
        """Some of it."""
        nbytes = self.nbytes - offset if nbytes is None else nbytes
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"{nbytes} bytes from {offset} on are not within {self.nbytes}")
        return Region(self.address + offset, nbytes, self)

    def free(self) -> None:
        """Gives it back: no job uses it any more, nor anything else on the GPU. Else it goes with the attachment."""
        with self.gpu._in_call():
            handle, self._handle = self._handle, None
            if handle is not None:
                lib.spw_gpu_memory_free(handle)


def _range_array(ranges: Iterable[Range]) -> Tuple[Any, List[Any]]:
    """struct spw_gpu_range[], and what owns their memory."""
    listed = [(key, offset, region(memory)) for key, offset, memory in ranges]
    keys, n = key_array(key for key, _, _ in listed)
    array = ffi.new("struct spw_gpu_range[]", n)
    for i, (_, offset, memory) in enumerate(listed):
        array[i].key = keys[i]
        array[i].offset_bytes, array[i].bytes, array[i].address = offset, memory.nbytes, memory.address
    return array, [memory.owner for _, _, memory in listed]
