# SPDX-License-Identifier: Apache-2.0
"""Activations on a GPU, to the pool and back.

    current stream   compute 1 ┬ compute 2 ┬ …   …  ┬ backward 3 ┬ backward 2
    writers, the link          └ put 1     └ put 2     └ get 2 ─────┘

put. The hook records an event, no more. A writer waits for that event, so that the timeout is for the pool alone, then
for the end of the job, and the offloader drops the storage, while the forward pass goes on. Nothing of the GPU's uses
it by then but what its own stream has, so the allocator may give it to that stream at once, and no record_stream() is
needed. The attachment's kernel gathers it, and comes last on the GPU: beside large products that lets one slot through
for each of them, so that little hides there. What takes so long that backward needs it first is given up: it would hold
the writers, and its memory, into the next step.

get. The memory is of the allocator's share for the stream that had it first: what forward gave back, and so no second
reserve. The hook takes it, and records an event: what that stream has by then comes before the read, and nothing that
comes later does, however late a reader gets to it. A reader waits for the job's end, which is known before the bytes
are handed out: an error of the link is an error of backward, not a wrong gradient. A consumer on another stream is told
to the allocator.

Objects are tensors of the store's, as ranges of a GPU's memory go to nothing else, and live for one graph.
"""
from __future__ import annotations

import threading
import warnings
from typing import Any, Dict, List, NamedTuple, Optional

import torch

from .. import gpu
from ..errors import NoSpace, SpillwayError, Timeout
from ..space import Space
from .activations import _Mover, _storage, _workers_of
from .device import attach

THREADS = 2  # of each kind: one copy begins while another ends
ALIGN_BYTES = 16  # of what the GPU's path takes

_attach_lock = threading.Lock()


class _Origin(NamedTuple):
    """The stream that a storage is of, and when its bytes are there."""

    stream: torch.cuda.Stream
    event: torch.cuda.Event


class _Room(NamedTuple):
    """Memory for a read, and when nothing uses it any more."""

    storage: Any
    event: torch.cuda.Event


def new_mover(space: Space, device: torch.device) -> Optional[_Mover]:
    """None: there is no way from this GPU to the pool. That is said once."""
    attached = _attached(space, device)
    return None if attached is None else _GpuMover(space, device, attached)


def _attached(space: Space, device: torch.device) -> Optional[gpu.Gpu]:
    """The session's, of whatever context: to attach takes seconds."""
    attachments = space.session._attachments
    key = "activations", space.pool.name, device
    with _attach_lock:
        if key not in attachments:
            try:
                attachments[key] = attach(space, device)
            except SpillwayError as error:
                attachments[key] = None
                warnings.warn(f"activations stay on {device}: {error}", RuntimeWarning)
        return attachments[key]


class _GpuMover(_Mover):
    """To tensors."""

    lags = True

    def __init__(self, space: Space, device: torch.device, attached: gpu.Gpu) -> None:
        super().__init__(space, _workers_of(space.session, f"GPU {device}", THREADS))
        self._device = device
        self._gpu = attached
        self._puts: Dict[bytes, gpu.Job] = {}  # that are waited for
        self._idle = torch.cuda.Stream(device)  # has nothing that a put would come after
        self._reads = torch.cuda.Stream(device)  # has what reads come after

    def takes(self, storage: Any) -> bool:
        if storage.data_ptr() % ALIGN_BYTES or storage.nbytes() % ALIGN_BYTES:
            return False
        return not torch.cuda.is_current_stream_capturing()

    def origin(self) -> _Origin:
        stream = torch.cuda.current_stream(self._device)
        event = torch.cuda.Event(blocking=True)
        event.record(stream)
        return _Origin(stream, event)

    def is_computed(self, origin: _Origin) -> bool:
        return origin.event.query()

    def wait_until_computed(self, origin: _Origin) -> None:
        origin.event.synchronize()

    def put(self, key: bytes, storage: Any, timeout: Optional[float]) -> None:
        nbytes = storage.nbytes()
        try:
            tensor = self._space.tensor(key, nbytes)
            ranges = [(tensor, 0, _region(storage))]
            job = self._gpu.put(ranges, self._idle.cuda_stream, space=self._space, timeout=timeout)
            self._puts[key] = job
            job.wait().check()
        except SpillwayError as error:
            self._drop(key)
            if isinstance(error, (NoSpace, Timeout)):
                raise self._full(error, key, nbytes) from None
            raise
        finally:
            self._puts.pop(key, None)

    def give_up(self, key: bytes) -> bool:
        job = self._puts.get(key)
        if job is not None:
            job.cancel()
        return job is not None

    def _drop(self, key: bytes) -> None:
        """What was made of it."""
        try:
            self.delete([key])
        except SpillwayError:
            pass  # the session is over

    def room(self, nbytes: int, origin: _Origin) -> _Room:
        with torch.cuda.stream(origin.stream):
            storage = _storage(torch.empty(nbytes, dtype=torch.uint8, device=self._device))
        event = torch.cuda.Event(blocking=True)
        event.record(origin.stream)
        return _Room(storage, event)

    def get(self, key: bytes, nbytes: int, room: _Room) -> Any:
        self._reads.wait_event(room.event)
        ranges: List[gpu.Range] = [(key, 0, _region(room.storage))]
        self._gpu.get(ranges, self._reads.cuda_stream, space=self._space).wait().check()
        return room.storage

    def use(self, storage: Any, origin: _Origin) -> None:
        stream = torch.cuda.current_stream(self._device)
        if stream != origin.stream:
            whole = torch.empty(0, dtype=torch.uint8, device=self._device)
            whole.set_(storage, 0, (storage.nbytes(),), (1,)).record_stream(stream)


def _region(storage: Any) -> gpu.Region:
    return gpu.Region(storage.data_ptr(), storage.nbytes(), storage)
