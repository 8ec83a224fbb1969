# SPDX-License-Identifier: Apache-2.0
"""How ranks agree that a snapshot is whole: by notes in the store, so that nobody waits for a collective.

    rank r   its data are durable ─▶ note (id, VOTE + r) ──────────────────────┐
    rank 0   all votes are there ─▶ the manifest is committed ─▶ note (id, OUTCOME) ─▶ all

A note is a block of a scratch space: it goes with its writer. A rank that had begun (it left an intent), does not write
any more (it held a reservation) and has left no note is waited for in vain: who waits says so.
"""
from __future__ import annotations

import errno
import itertools
import json
import time
from typing import Callable, Dict, List, Optional, Tuple

from ..errors import SpillwayError
from .catalog import Catalog
from .manifest import Document, encode

VOTE = 1 << 24  # + the rank; ranks' own numbers are their reservations
OUTCOME = 1 << 25
LOOK_SECONDS = 0.002
INTENT_LOOKS = 100  # every so many looks: it costs more
WAIT_SECONDS = 1800.0  # for a rank that lives

_Key = Tuple[bytes, int]


class Rendezvous:
    """Of one rank's with the others."""

    def __init__(self, catalog: Catalog, rank: int, world_size: int) -> None:
        self._catalog = catalog
        self._rank = rank
        self._size = world_size
        self._notes: List[_Key] = []  # of this rank, of earlier snapshots

    def commit(self, id_: bytes, shard: Document, commit_all: Callable[[List[Document]], None]) -> None:
        """This rank's shard is durable. Returns when the snapshot is; rank 0 calls commit_all() with all shards."""
        if self._size == 1:
            commit_all([shard])
            return
        if self._rank != 0:
            self._note((id_, VOTE + self._rank), {"shard": shard})
            _check(self._wait((id_, OUTCOME), 0, id_))
            return
        try:
            votes = [_check(self._wait((id_, VOTE + rank), rank, id_)) for rank in range(1, self._size)]
            self._forget()  # who has voted has seen the earlier outcomes
            commit_all([shard] + [vote["shard"] for vote in votes])
        except Exception as error:
            self.refuse(id_, error)
            raise
        self._note((id_, OUTCOME), {})

    def refuse(self, id_: bytes, error: BaseException) -> None:
        """This rank's shard will not be there."""
        if self._size > 1:
            key = OUTCOME if self._rank == 0 else VOTE + self._rank
            self._note((id_, key), {"error": f"rank {self._rank}: {error}"})

    def _note(self, key: _Key, document: Document) -> None:
        if self._rank != 0:
            self._forget()  # rank 0 was done with them when it told the outcome
        self._catalog.notes.put([key], [encode(document)]).check(errno.EEXIST)
        self._notes.append(key)

    def _forget(self) -> None:
        keys, self._notes = self._notes, []
        if keys:
            self._catalog.notes.delete(keys)

    def _wait(self, key: _Key, rank: int, id_: bytes) -> Document:
        began = time.monotonic()
        for look in itertools.count(1):
            writes = self._catalog.writes(id_, [rank])[0]  # before the look: it notes first, then ends
            note = self._look(key)
            if note is not None:
                return note
            if not writes and look % INTENT_LOOKS == 0 and self._has_died(key, rank, id_):
                raise SpillwayError(errno.EPIPE, f"rank {rank} ended before its part of the snapshot was durable")
            if time.monotonic() > began + WAIT_SECONDS:
                raise SpillwayError(errno.ETIMEDOUT, f"rank {rank} has not finished its part in {WAIT_SECONDS:.0f} s")
            time.sleep(LOOK_SECONDS)
        raise AssertionError

    def _has_died(self, key: _Key, rank: int, id_: bytes) -> bool:
        if not self._catalog.has_begun(id_, rank):
            return False
        return not self._catalog.writes(id_, [rank])[0] and self._look(key) is None  # it may have begun just now

    def _look(self, key: _Key) -> Optional[Document]:
        hit = self._catalog.notes.lookup([key])[0]
        if hit.status != 0:
            return None
        buffer = bytearray(hit.size)
        self._catalog.notes.get([key], [buffer]).check()
        note: Dict[str, object] = json.loads(buffer)
        return note


def _check(note: Document) -> Document:
    if "error" in note:
        raise SpillwayError(errno.EPIPE, f"another rank could not save: {note['error']}")
    return note
