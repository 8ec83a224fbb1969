# SPDX-License-Identifier: Apache-2.0
"""Activations on a GPU, to the pool and back.

    current stream   compute 1 ┬ compute 2 ┬ …   …  ┬ backward 3 ┬ backward 2
    streams out, back          └ put 1     └ put 2     └ get 2 ─────┘

put. The hook records an event, no more. A writer waits for that event, so that the timeout is for the pool alone, then
for the end of the copy, and the offloader drops the storage, while the forward pass goes on. Nothing of the GPU's uses
it by then but what its own stream has, so the allocator may give it to that stream at once, and no record_stream() is
needed.

get. The memory is of the allocator's share for the stream that had it first: what forward gave back, and so no second
reserve. The hook takes it, and records an event: what that stream has by then comes before the read, and nothing that
comes later does, however late a reader gets to it. A consumer on another stream is told to the allocator.

Three ways, of which each is for what the one before cannot take:

- Storages are contiguous, so the GPU's copy engines move them, which take nothing from those that compute: from and to
  slots, memory of the pool that this process has registered with the driver (Gpu.map()) and keeps (_SlotMover). No call
  of the daemon's is on that way. The consumer's stream waits for a read, the host does not; what nobody has used when
  the graph goes is waited for before its memory is free. A slot's next copy waits for its last one.
- Without a slot, from and to blocks of the pool's, a block for each piece, which may go to devices (_CopyMover).
- Where memory cannot be registered the attachment's kernels do it (_KernelMover), to tensors, as ranges of a GPU's
  memory go to nothing else. The kernel that gathers comes last on the GPU: beside large products it lets one slot
  through for each of them, so that little hides there.

By the latter two a reader waits for the copy's end, which is known before the bytes are handed out: an error of the
link is an error of backward, not a wrong gradient. What takes so long that backward needs it first is given up, by the
first and the last: it would hold the writers, and its memory, into the next step.

Objects live for one graph.
"""
from __future__ import annotations

import contextlib
import errno
import os
import threading
import warnings
from collections import deque
from typing import Any, ContextManager, Deque, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import torch

from .. import gpu
from ..errors import NoSpace, SpillwayError, Timeout
from ..space import Space
from ..views import Views
from .activations import _Mover, _storage, _workers_of
from .activations_link import Link
from .device import Copies, attach, copy_all
from .memory import octets
from .slots import Slot, Slots

THREADS = 2  # of each kind: one copy begins while another ends
ALIGN_BYTES = 16  # of what the kernels take
BATCH_PIECES = 8  # room for so many is asked for at once: a storage may be larger than what is free at any time
BATCH_BYTES = 64 << 20  # of copies that cannot be taken back: a millisecond, which hides the thread's wakeup
SLOTS_PERCENT = 50  # of the pool's memory, at most: 60 is what all of a user's leases may be, by default
TIMED_MAX = 256  # reads whose seconds have not been added up

# In less than a microsecond. torch without CUDA has it not.
_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)

_attach_lock = threading.Lock()

Pair = Tuple[torch.Tensor, torch.Tensor]


class _Origin(NamedTuple):
    """The stream that a storage is of, and when its bytes are there."""

    stream: torch.cuda.Stream
    event: torch.cuda.Event


class _Room(NamedTuple):
    """Memory for a read, and when nothing uses it any more."""

    storage: Any
    event: torch.cuda.Event


class _Sent(NamedTuple):
    """Copies that are on their way."""

    begin: torch.cuda.Event
    end: torch.cuda.Event

    def seconds(self) -> float:
        """That they took, once they have ended."""
        return float(self.begin.elapsed_time(self.end)) / 1e3


def _new_sent() -> _Sent:
    return _Sent(*(torch.cuda.Event(blocking=True, enable_timing=True) for _ in range(2)))


class _CopyStream:
    """A stream of a device's that copies, one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._spare: Deque[_Sent] = deque()  # of no thread's own: to free events gives up the lock, in an exit for good

    def copy(self, pairs: List[Pair], after: Optional[torch.cuda.Event]) -> _Sent:
        """Begins to copy each second to its first, after this event."""
        with torch.cuda.stream(self._stream):
            return self._begin(pairs, after, _new_sent())

    def copied(self, pairs: List[Pair], after: Optional[torch.cuda.Event]) -> float:
        """Copies, and returns the seconds that it took. For threads that do nothing else: this stream becomes their
        current one, and events are used again, since both take longer than to queue a copy."""
        if _raw_stream is None or _raw_stream(self._stream.device_index) != self._stream.cuda_stream:
            torch.cuda.set_stream(self._stream)
        try:
            sent = self._spare.pop()
        except IndexError:
            sent = _new_sent()
        self._begin(pairs, after, sent)
        sent.end.synchronize()
        seconds = sent.seconds()
        self._spare.append(sent)
        return seconds

    def _begin(self, pairs: List[Pair], after: Optional[torch.cuda.Event], sent: _Sent) -> _Sent:
        if after is not None:
            self._stream.wait_event(after)
        sent.begin.record(self._stream)
        copy_all(pairs)
        sent.end.record(self._stream)
        return sent


class _Mapped(NamedTuple):
    """What copy engines use."""

    slots: Slots
    out: _CopyStream
    back: _CopyStream


class _Way(NamedTuple):
    """Between a GPU and a pool. mapped: None: the pool's memory cannot be registered."""

    gpu: gpu.Gpu
    link: Link
    mapped: Optional[_Mapped]


def new_mover(space: Space, device: torch.device) -> Optional[_Mover]:
    """None: there is no way from this GPU to the pool. That is said once."""
    way = _way(space, device)
    if way is None:
        return None
    if way.mapped is None:
        return _KernelMover(space, device, way)
    return _SlotMover(space, device, way, way.mapped)


def _way(space: Space, device: torch.device) -> Optional[_Way]:
    """The session's, of whatever context: to attach takes seconds."""
    attachments = space.session._attachments
    key = "activations", space.pool.name, device
    with _attach_lock:
        if key not in attachments:
            attachments[key] = _attach(space, device)
        found: Optional[_Way] = attachments[key]
        return found


def _attach(space: Space, device: torch.device) -> Optional[_Way]:
    try:
        attached = _attach_mapped(space, device)
    except SpillwayError as error:
        why = str(error)
    else:
        info = space.pool.info
        slots = Slots(space, attached, (info.dram_bytes + info.cxl_bytes) * SLOTS_PERCENT // 100)
        slots.map_ahead()
        return _Way(attached, Link(), _Mapped(slots, _CopyStream(device), _CopyStream(device)))
    try:
        attached = attach(space, device)
    except SpillwayError as error:
        warnings.warn(f"activations stay on {device}: {error}", RuntimeWarning)
        return None
    warnings.warn(f"the pool's memory is not pinned here, so activations move slowly: {why}", RuntimeWarning)
    return _Way(attached, Link(), None)


def _attach_mapped(space: Space, device: torch.device) -> gpu.Gpu:
    """Where the pool's memory can be registered with the driver: it is tried."""
    attached = attach(space, device, map_only=True)
    room = space.reserve([os.urandom(16)], [1])
    try:
        for view in room:
            if view.status == 0:
                attached.map(view)
        return attached
    except SpillwayError:
        attached.close()
        raise
    finally:
        room.abort()


class _DeviceMover(_Mover):
    """What both ways have."""

    lags = True

    def __init__(self, space: Space, device: torch.device, way: _Way) -> None:
        super().__init__(space, _workers_of(space.session, f"GPU {device}", THREADS))
        self.link = way.link
        self._device = device
        self._gpu = way.gpu
        self._stream: Optional[torch.cuda.Stream] = None
        self._puts: Dict[bytes, Any] = {}  # that are waited for, and can be cancelled

    def give_up(self, key: bytes) -> bool:
        job = self._puts.get(key)
        if job is not None:
            job.cancel()
        return job is not None

    def takes(self, storage: Any) -> bool:
        return not torch.cuda.is_current_stream_capturing()

    def origin(self) -> _Origin:
        stream = self._current_stream()
        event = torch.cuda.Event(blocking=True)
        event.record(stream)
        return _Origin(stream, event)

    def origin_again(self, origin: Optional[_Origin]) -> _Origin:
        """To make an event takes longer than to record it."""
        stream = self._current_stream()
        if origin is None or origin.stream != stream:
            return self.origin()
        origin.event.record(stream)
        return origin

    def _current_stream(self) -> torch.cuda.Stream:
        """It is asked for at each save, and nearly always the one that it was."""
        stream = self._stream
        if _raw_stream is None or stream is None or _raw_stream(self._device.index) != stream.cuda_stream:
            stream = self._stream = torch.cuda.current_stream(self._device)
        return stream

    def _current(self, stream: torch.cuda.Stream) -> ContextManager[Any]:
        """A `with` in which that is the current stream: nearly always it is, and then this costs nothing."""
        return contextlib.nullcontext() if stream is self._current_stream() else torch.cuda.stream(stream)

    def is_computed(self, origin: _Origin) -> bool:
        return bool(origin.event.query())

    def wait_until_computed(self, origin: _Origin) -> None:
        origin.event.synchronize()

    def room(self, nbytes: int, origin: _Origin) -> _Room:
        with self._current(origin.stream):
            storage = _storage(torch.empty(nbytes, dtype=torch.uint8, device=self._device))
        event = torch.cuda.Event(blocking=True)
        event.record(origin.stream)
        return _Room(storage, event)

    def use(self, key: bytes, storage: Any, origin: _Origin) -> None:
        stream = self._current_stream()
        if stream != origin.stream:
            self._whole(storage).record_stream(stream)

    def _whole(self, storage: Any) -> torch.Tensor:
        whole = torch.empty(0, dtype=torch.uint8, device=self._device)
        return whole.set_(storage, 0, (storage.nbytes(),), (1,))

    def _drop(self, key: bytes) -> None:
        """What was made of it."""
        try:
            self.delete([key])
        except SpillwayError:
            pass  # the session is over

    @contextlib.contextmanager
    def _whole_or_nothing(self, key: bytes, nbytes: int) -> Iterator[None]:
        """Of a put that fails nothing is left; where that is for want of room, the error says how much was wanted."""
        try:
            yield
        except SpillwayError as error:
            self._drop(key)
            if isinstance(error, (NoSpace, Timeout)):
                raise self._full(error, key, nbytes) from None
            raise


class _CopyMover(_DeviceMover):
    """By copy engines, to a block for each piece."""

    def __init__(self, space: Space, device: torch.device, way: _Way) -> None:
        super().__init__(space, device, way)
        self._out, self._in = Copies(device), Copies(device)
        self._pieces: Dict[bytes, int] = {}  # how many, of each key

    def put(self, key: bytes, storage: Any, timeout: Optional[float]) -> None:
        pieces = self._whole(storage).split(self._space.piece_bytes)
        self._pieces[key] = len(pieces)
        with self._whole_or_nothing(key, storage.nbytes()):
            for first in range(0, len(pieces), BATCH_PIECES):
                some = pieces[first : first + BATCH_PIECES]
                room = self._space.reserve(
                    [(key, first + i) for i in range(len(some))],
                    [piece.numel() for piece in some],
                    all_or_nothing=True,
                    timeout=timeout,
                )
                with room.check():
                    self._out.copy(zip(self._mapped(room), some))()
                room.check()

    def get(self, key: bytes, nbytes: int, room: _Room) -> Any:
        self._in.after(room.event)
        pieces = self._whole(room.storage).split(self._space.piece_bytes)
        for first in range(0, len(pieces), BATCH_PIECES):
            some = pieces[first : first + BATCH_PIECES]
            with self._space.acquire([(key, first + i) for i in range(len(some))]) as views:
                self._in.copy(zip(some, self._mapped(views.check())))()
        return room.storage

    def _mapped(self, views: Views) -> List[torch.Tensor]:
        """Their bytes, pinned; dropped before the leases end."""
        for view in views:
            self._gpu.map(view)
        return [octets(view.address, view.size) for view in views]

    def delete(self, keys: List[bytes]) -> None:
        self._space.delete([(key, i) for key in keys for i in range(self._pieces.pop(key, 0))])


class _Cancellable:
    """Of what is copied batch after batch."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        """What has not begun is left out."""
        self.cancelled = True


class _Arrival:
    """Of a read: when it has ended. storage: what it fills, until somebody uses that; then it is theirs."""

    def __init__(self, event: torch.cuda.Event, storage: Any) -> None:
        self.event = event
        self.storage = storage


class _SlotMover(_CopyMover):
    """By copy engines, to slots as long as there are any."""

    def __init__(self, space: Space, device: torch.device, way: _Way, mapped: _Mapped) -> None:
        super().__init__(space, device, way)
        self._slots, self._copies_out, self._copies_back = mapped
        self._held: Dict[bytes, Slot] = {}  # what is stored, and where
        self._arrivals: Dict[bytes, _Arrival] = {}
        self._timed: Deque[_Sent] = deque()

    def put(self, key: bytes, storage: Any, timeout: Optional[float]) -> None:
        slot = self._slots.take(storage.nbytes())
        if slot is not None:
            self._copy(key, storage, slot)
        elif self._slots.usable:
            super().put(key, storage, timeout)
        else:
            raise self._full(NoSpace(errno.ENOSPC, "no memory is registered"), key, storage.nbytes())

    def _copy(self, key: bytes, storage: Any, slot: Slot) -> None:
        job = self._puts[key] = _Cancellable()
        try:
            for batch in _batches(slot.beside(self._whole(storage))):
                if job.cancelled:
                    raise SpillwayError(errno.ECANCELED, "backward has it")
                seconds = self._copies_out.copied(batch, slot.read)
                self.put_seconds += seconds
        except BaseException:
            self._slots.give(slot)
            raise
        finally:
            del self._puts[key]
        slot.read = None
        self._held[key] = slot
        self.copied_bytes += storage.nbytes()

    def get(self, key: bytes, nbytes: int, room: _Room) -> Any:
        slot = self._held.get(key)
        if slot is None:
            return self._get_blocks(key, nbytes, room)
        pairs = [(there, here) for here, there in slot.beside(self._whole(room.storage))]
        sent = self._copies_back.copy(pairs, room.event)
        slot.read = sent.end
        self._arrivals[key] = _Arrival(sent.end, room.storage)
        self._timed.append(sent)
        if len(self._timed) > TIMED_MAX:
            self.add_up()
        return room.storage

    def _get_blocks(self, key: bytes, nbytes: int, room: _Room) -> Any:
        try:
            return super().get(key, nbytes, room)
        except NoSpace:  # to lease as much
            self._slots.trim()
            return super().get(key, nbytes, room)

    def use(self, key: bytes, storage: Any, origin: _Origin) -> None:
        arrival = self._arrivals.get(key)
        if arrival is not None:
            self._current_stream().wait_event(arrival.event)
            arrival.storage = None
        super().use(key, storage, origin)

    def add_up(self) -> None:
        """The seconds of reads that have ended: they end in their order."""
        try:
            while self._timed[0].end.query():
                self.get_seconds += self._timed.popleft().seconds()
        except IndexError:
            pass  # there are no more

    def drop(self, key: bytes) -> bool:
        arrival = self._arrivals.get(key)
        if key not in self._held or (arrival is not None and arrival.storage is not None):
            return False
        self._arrivals.pop(key, None)
        self._slots.give(self._held.pop(key))
        return True

    def delete(self, keys: List[bytes]) -> None:
        stored = []
        for key in keys:
            arrival = self._arrivals.get(key)
            if arrival is not None and arrival.storage is not None:
                arrival.event.synchronize()
                arrival.storage = None
            if not self.drop(key):
                stored.append(key)
        if stored:
            super().delete(stored)


def _batches(pairs: Iterable[Pair]) -> Iterator[List[Pair]]:
    batch: List[Pair] = []
    nbytes = 0
    for pair in pairs:
        batch.append(pair)
        nbytes += pair[0].numel()
        if nbytes >= BATCH_BYTES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


class _KernelMover(_DeviceMover):
    """By kernels, to tensors."""

    def __init__(self, space: Space, device: torch.device, way: _Way) -> None:
        super().__init__(space, device, way)
        self._idle = torch.cuda.Stream(device)  # has nothing that a put would come after
        self._reads = torch.cuda.Stream(device)  # has what reads come after

    def takes(self, storage: Any) -> bool:
        if storage.data_ptr() % ALIGN_BYTES or storage.nbytes() % ALIGN_BYTES:
            return False
        return super().takes(storage)

    def put(self, key: bytes, storage: Any, timeout: Optional[float]) -> None:
        try:
            with self._whole_or_nothing(key, storage.nbytes()):
                tensor = self._space.tensor(key, storage.nbytes())
                ranges = [(tensor, 0, _region(storage))]
                job = self._gpu.put(ranges, self._idle.cuda_stream, space=self._space, timeout=timeout)
                self._puts[key] = job
                job.wait().check()
        finally:
            self._puts.pop(key, None)

    def get(self, key: bytes, nbytes: int, room: _Room) -> Any:
        self._reads.wait_event(room.event)
        ranges: List[gpu.Range] = [(key, 0, _region(room.storage))]
        self._gpu.get(ranges, self._reads.cuda_stream, space=self._space).wait().check()
        return room.storage


def _region(storage: Any) -> gpu.Region:
    return gpu.Region(storage.data_ptr(), storage.nbytes(), storage)
