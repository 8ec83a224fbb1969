# SPDX-License-Identifier: Apache-2.0
"""Memory of a pool's that GPUs copy from and to, and that is used again: mapping it costs tens of milliseconds a GiB.

    reserve, map ──▶ taken ──▶ given ──▶ taken by who needs as much ──▶ …
                                  └────▶ aborted, if room for another size is wanted

A slot is a reservation that is never committed: the daemon counts it as leased, and neither moves it nor lends it to
others. So there is a limit to all of them, and what does not fit goes another way.
No slot is taken any more once the driver has refused to map memory.
"""
from __future__ import annotations

import itertools
import os
import threading
import time
import warnings
from collections import deque
from typing import Any, Deque, Iterable, List, Optional, Tuple

import torch

from .. import gpu
from ..errors import NoSpace, SpillwayError, Timeout
from ..space import Space
from ..views import Reservation
from .memory import octets

WASTE = 4  # a slot is taken for what is less by a quarter of it at most
RESERVE_SECONDS = 0.05  # to wait for room
PAUSE_SECONDS = 1.0  # after there was none; twice as long each time
PAUSE_SECONDS_MAX = 64.0
AHEAD_BYTES = 1 << 30  # at a time: a window of the library's
AHEAD_SECONDS = 5.0

_NAME_BYTES = 16
_NUMBER_BYTES = 8


class Slot:
    """Memory of the host. read: an event after which nothing reads it any more, or None."""

    __slots__ = ("nbytes", "parts", "read", "views")

    def __init__(self, views: Reservation) -> None:
        self.views = views
        self.parts = [octets(view.address, view.size) for view in views]
        self.nbytes = sum(view.size for view in views)
        self.read: Any = None

    def beside(self, tensor: torch.Tensor) -> Iterable[Tuple[torch.Tensor, torch.Tensor]]:
        """Pairs of its memory, and as much of a tensor of bytes, until that ends."""
        left = tensor.numel()
        sizes = []
        for part in self.parts:
            sizes.append(min(part.numel(), left))
            left -= sizes[-1]
        others = tensor.split(sizes)
        return [(a if a.numel() == n else a[:n], b) for a, b, n in zip(self.parts, others, sizes) if n]


class Slots:
    """Those of a session, for spaces of one pool."""

    def __init__(self, space: Space, mapper: gpu.Gpu, limit_bytes: int) -> None:
        self._space = space
        self._mapper: Optional[gpu.Gpu] = mapper
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._name = os.urandom(_NAME_BYTES)
        self._numbers = itertools.count()
        self._free: List[Slot] = []
        self._given: Deque[Slot] = deque()
        self._not_before = 0.0
        self._pause = PAUSE_SECONDS
        self.nbytes = 0

    @property
    def usable(self) -> bool:
        """Can the memory be mapped?"""
        return self._mapper is not None

    def map_ahead(self) -> None:
        """Maps memory that slots may get, as long as the GPU has nothing to do, as far as nobody has something there.

        To map memory waits for a GPU that computes, which in a training step is never idle.
        """
        stat = self._space.stat()
        left = min(self._limit_bytes, self._space.pool.info.dram_bytes - stat.dram_used)
        held: List[Reservation] = []
        try:
            while left >= AHEAD_BYTES and self._mapper is not None:
                views = self._reserve(AHEAD_BYTES, AHEAD_SECONDS)
                if views is None:
                    break
                held.append(views)
                left -= AHEAD_BYTES
                for view in views:
                    self._mapper.map(view)
        except SpillwayError as error:
            self._refused(error)
        finally:
            for views in held:
                views.abort()

    def take(self, nbytes: int) -> Optional[Slot]:
        """None: there is no room for it."""
        with self._lock:
            return self._take_free(nbytes) or self._new(nbytes)

    def give(self, slot: Slot) -> None:
        """It is not used any more, but for what comes before its event. From finalisers too: without a lock."""
        self._given.append(slot)

    def trim(self) -> None:
        """Gives back to the pool what nobody uses."""
        with self._lock:
            self._trim()

    def _collect(self) -> None:
        while self._given:
            self._free.append(self._given.popleft())

    def _take_free(self, nbytes: int) -> Optional[Slot]:
        self._collect()
        fitting = [slot for slot in self._free if nbytes <= slot.nbytes <= nbytes + nbytes // WASTE]
        if not fitting:
            return None
        slot = min(fitting, key=lambda slot: slot.nbytes)
        self._free.remove(slot)
        return slot

    def _new(self, nbytes: int) -> Optional[Slot]:
        if self._mapper is None or time.monotonic() < self._not_before:
            return None
        if self.nbytes + nbytes > self._limit_bytes:
            self._trim()
        if self.nbytes + nbytes > self._limit_bytes:
            return None
        views = self._reserve(nbytes)
        if views is None and self._free:
            self._trim()
            views = self._reserve(nbytes)
        if views is None:
            self._not_before = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, PAUSE_SECONDS_MAX)
            return None
        self._pause = PAUSE_SECONDS
        return self._mapped(views)

    def _trim(self) -> None:
        self._collect()
        free, self._free = self._free, []
        for slot in free:
            if slot.read is not None:
                slot.read.synchronize()
            self.nbytes -= slot.nbytes
            slot.parts.clear()
            slot.views.abort()

    def _reserve(self, nbytes: int, seconds: float = RESERVE_SECONDS) -> Optional[Reservation]:
        key = self._name + next(self._numbers).to_bytes(_NUMBER_BYTES, "big")
        piece = self._space.piece_bytes
        sizes = [min(piece, nbytes - at) for at in range(0, nbytes, piece)]
        keys = [(key, i + 1) for i in range(len(sizes))]
        try:
            views = self._space.reserve(keys, sizes, all_or_nothing=True, timeout=seconds)
        except (NoSpace, Timeout):
            return None
        if all(view.status == 0 for view in views):
            return views
        views.abort()
        return None

    def _mapped(self, views: Reservation) -> Optional[Slot]:
        assert self._mapper is not None
        try:
            for view in views:
                self._mapper.map(view)
        except SpillwayError as error:
            views.abort()
            self._refused(error)
            return None
        slot = Slot(views)
        self.nbytes += slot.nbytes
        return slot

    def _refused(self, error: SpillwayError) -> None:
        self._mapper = None
        warnings.warn(f"no more of the pool's memory can be pinned, so activations stay: {error}", RuntimeWarning)
