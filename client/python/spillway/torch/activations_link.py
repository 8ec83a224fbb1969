# SPDX-License-Identifier: Apache-2.0
"""What of a forward pass is worth its copy, where the device may wait for the host."""
from __future__ import annotations

import math
from collections import deque
from typing import Deque, Dict

LEAST_BYTES = 64 << 20  # are queued for a link, whatever it has carried
LEAST_STORAGE = 1 << 20  # nothing is gained by leaving out what is smaller
PASSES = 64  # of which the best one tells what it carries: what checkpoints compute again are passes, too
LEFT_OUT_MAX = 1000  # one after the other, before smaller ones are tried
PATIENCE, PATIENCE_MAX = 16, 1024  # passes in which the device did not wait, before smaller ones are tried


class Pass:
    """A forward pass, in bytes: of the storages that were looked at those that were queued, of these those that were
    stored, and what was refused, since the device waited for the host. sizes: of all that were looked at, by the
    number of bits of theirs.
    """

    __slots__ = ("looked_at", "queued", "refused", "sizes", "stored")

    def __init__(self) -> None:
        self.looked_at = self.queued = self.refused = self.stored = 0
        self.sizes: Dict[int, int] = {}

    def look_at(self, nbytes: int) -> None:
        bits = nbytes.bit_length()
        self.looked_at += nbytes
        self.sizes[bits] = self.sizes.get(bits, 0) + nbytes

    def largest(self, wanted: int) -> int:
        """As many bytes as the smallest has of the largest that are so much together; 0: all are less."""
        total = 0
        for bits in sorted(self.sizes, reverse=True):
            total += self.sizes[bits]
            if total >= wanted:
                return 1 << (bits - 1)
        return 0


class Link:
    """What of a forward pass is worth its copy, between a pool and a device that lags.

    To queue a storage costs the host the same however large that is. Where the device waits for the host, that is what
    is short: so there only the largest are, of which twice as much is queued as passes before have stored, so that it
    is seen if more can be. Where the device never waits, or only at first, all are.
    """

    def __init__(self) -> None:
        self._least_bytes = 0  # smaller ones are not
        self._left_out = 0  # since one was looked at last
        self._limit: float = math.inf  # of what a pass queues
        self._now = Pass()
        self._is_over = False
        self._stored: Deque[int] = deque(maxlen=PASSES)
        self._looked_at = 0  # at most by a pass, with this least
        self._passes_in_time = 0  # since the device waited last, or smaller ones were tried
        self._patience = PATIENCE
        self._tries = False  # smaller ones

    def backward_begins(self) -> None:
        """What is saved from then on is of another pass."""
        self._is_over = True

    def leaves_out(self, nbytes: int) -> bool:
        """Is it too small to be looked at? Without a lock: counts may be less than they should, and are only counts."""
        if self._is_over:
            self._begin()
        if nbytes >= self._least_bytes:
            return False
        self._left_out += 1
        if self._left_out >= LEFT_OUT_MAX:  # it is another model
            self._left_out = 0
            self._try_smaller()
        return True

    def takes(self, nbytes: int) -> bool:
        """Is it worth it? One storage is, however large."""
        self._left_out = 0
        self._now.look_at(nbytes)
        return self._now.queued == 0 or self._now.queued + nbytes <= self._limit

    def refuse(self, nbytes: int) -> None:
        """It would be, but the device waits."""
        self._now.refused += nbytes

    def queue(self, nbytes: int) -> Pass:
        """It is queued; of this pass."""
        self._now.queued += nbytes
        return self._now

    def _begin(self) -> None:
        self._is_over = False
        last, self._now = self._now, Pass()
        if last.looked_at == 0:
            return
        if 0 < self._looked_at < last.looked_at * 4 // 5:  # it is another model
            self._stored.clear()
            self._set_least(0)
        self._looked_at = max(self._looked_at, last.looked_at)
        self._stored.append(last.stored)
        best = max(self._stored)
        wanted = 2 * best + LEAST_BYTES
        if last.refused > last.stored:
            self._leave_out(last.largest(wanted))
        elif self._least_bytes:
            self._passes_in_time += 1
            is_all = last.stored == last.looked_at
            is_little = last.stored <= best // 2  # as where the largest come last
            if self._tries or is_all or is_little or self._passes_in_time == self._patience:
                self._try_smaller()
        self._limit = wanted if self._least_bytes else math.inf

    def _leave_out(self, least_bytes: int) -> None:
        if self._tries:
            self._patience = min(2 * self._patience, PATIENCE_MAX)
        self._tries = False
        self._set_least(max(self._least_bytes, least_bytes))

    def _try_smaller(self) -> None:
        self._tries = True
        half = self._least_bytes // 2
        self._set_least(half if half >= LEAST_STORAGE else 0)

    def _set_least(self, nbytes: int) -> None:
        self._passes_in_time = 0
        if nbytes != self._least_bytes:
            self._looked_at = 0
        self._least_bytes = nbytes
