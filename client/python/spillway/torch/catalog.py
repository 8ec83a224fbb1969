# SPDX-License-Identifier: Apache-2.0
"""Which snapshots a pool has. Three kinds of blocks in one durable space of the pool:

    data       (id, rank), number   a shard's blocks and its index
    intent     slot                 "these data are being written, or deleted": what they are, by number
    snapshot   slot                 a manifest

    intent ─SYNC─▶ data ─SYNC─▶ snapshot ─SYNC─▶ no intent            a snapshot is made
    intent ─SYNC─▶ no snapshot ─SYNC─▶ no data ─▶ no intent           one is deleted

A snapshot is there exactly if its manifest is, and that is one block, whose SYNC is the commit. Data without a manifest
are named by an intent; whoever saves next deletes them, if no rank of their writer lives: each holds a reservation as
long as it writes, which ends with its session, however that ends. All blocks are written once: who saves under a name
that is taken writes a new snapshot with a higher generation, and deletes the old one when that is durable. A slot is
taken by storing a block in it, which succeeds for one writer alone, so no lock is needed.
"""
from __future__ import annotations

import errno
import json
import os
import random
from typing import Dict, List, NamedTuple, Sequence, Tuple

from ..errors import NoSpace, SpillwayError
from ..session import Pool
from ..views import Reservation
from .manifest import Document, check_format, encode

SLOTS = 1024
INDEX = (1 << 32) - 1
SYNC_BYTES = 256 << 20  # at a time, so that a slow device has them within the daemon's bound
_LAYOUT = {"what": "spillway.torch snapshots", "version": 1}
_NOTES = {"what": "spillway.torch snapshots: who writes", "version": 1}

DataKey = Tuple[bytes, int]


class Entry(NamedTuple):
    """A document and where it is."""

    slot: int
    document: Document


def data_key(id_: bytes, rank: int, number: int) -> DataKey:
    """Of a block of a shard."""
    return id_ + rank.to_bytes(4, "big"), number


def data_keys(id_: bytes, rank: int, n: int) -> List[DataKey]:
    """Of all of a shard's n blocks, and of its index."""
    return [data_key(id_, rank, number) for number in [*range(n), INDEX]]


class Catalog:
    """The snapshots of one pool; any thread."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        if not pool.info.nvme_bytes:
            raise SpillwayError(
                errno.ENODEV,
                f"a snapshot needs a device, and pool {pool.name!r} has nothing on one: "
                f"add a [device] and `nvme` of [pool {pool.name}]",
            )
        self.data = pool.space(_LAYOUT, class_="weights", durability="durable")
        self.notes = pool.space(_NOTES, class_="generic", durability="scratch")

    # --- Snapshots --------------------------------------------------------------------------------------------------

    def newest(self) -> List[Entry]:
        """Of each optimizer's snapshots of each name the one that counts, the oldest first."""
        return _newest(self._entries(b"snapshot"))

    def commit(self, document: Document) -> None:
        """The snapshot is there from now on, in place of the one that had its name. Its data are durable already.

        If this fails it is not there, and the data can be deleted."""
        same = [entry for entry in self._entries(b"snapshot") if _name(entry.document) == _name(document)]
        generation = 1 + max((entry.document["generation"] for entry in same), default=0)
        try:
            self._claim(b"snapshot", {**document, "generation": generation})
        except OSError:
            self._withdraw(document)
            raise

    def _withdraw(self, document: Document) -> None:
        """A manifest whose SYNC failed may be durable all the same."""
        slots = [entry.slot for entry in self._entries(b"snapshot") if entry.document["id"] == document["id"]]
        for slot in slots:
            self.data.delete([(b"snapshot", slot)]).check(errno.ENOENT)
        if slots:
            self._flush()

    def _flush(self) -> None:
        """Deletions are durable with the next SYNC, of whatever."""
        key = (b"flush", 0)
        self.data.put([key], [b"\0"]).check(errno.EEXIST)
        self.data.sync([key])

    def remove(self, entry: Entry) -> None:
        """Deletes a snapshot, and those that it has replaced, if they are still there. Durable when it returns."""
        same = [e for e in self._entries(b"snapshot") if _name(e.document) == _name(entry.document)]
        for each in sorted(same, key=lambda e: _age(e.document)):
            if _age(each.document) <= _age(entry.document):
                self.delete(each)

    def delete(self, entry: Entry) -> None:
        """Deletes one. One that is gone already is deleted."""
        document = entry.document
        counts = [shard["blocks"] for shard in document["shards"]]
        intent = self.intend(bytes.fromhex(document["id"]), dict(enumerate(counts)), len(counts))
        if self._is_still(b"snapshot", entry):
            self.data.delete([(b"snapshot", entry.slot)]).check(errno.ENOENT)
            self._flush()
        self.drop(intent)

    # --- Data that are no snapshot yet, or no more ------------------------------------------------------------------

    def intend(self, id_: bytes, counts: Dict[int, int], world_size: int) -> Entry:
        """Notes that there may be data of so many blocks by rank. Durable when it returns."""
        document = {"id": id_.hex(), "blocks": sorted(counts.items()), "world_size": world_size}
        return Entry(self._claim(b"intent", document), document)

    def forget(self, intent: Entry) -> None:
        """The data have their manifest, or there are none."""
        if self._is_still(b"intent", intent):
            self.data.delete([(b"intent", intent.slot)]).check(errno.ENOENT)

    def drop(self, intent: Entry) -> None:
        """Deletes the data, then the intent."""
        for rank, n in intent.document["blocks"]:
            self.data.delete(data_keys(bytes.fromhex(intent.document["id"]), rank, n))
        self.forget(intent)

    def sweep(self) -> None:
        """Deletes snapshots that newer ones of their name have replaced, and the data of writers that died."""
        intents = self._entries(b"intent")
        stale = [intent for intent in intents if not self._is_written(intent.document)]
        # Only now: who was writing, and is not any more, has committed before.
        snapshots = self._entries(b"snapshot")
        ids = {entry.document["id"] for entry in snapshots}
        for intent in stale:
            if intent.document["id"] in ids:
                self.forget(intent)
            else:
                self.drop(intent)
        for entry in snapshots:
            if entry not in _newest(snapshots):
                self.delete(entry)

    # --- Who writes -------------------------------------------------------------------------------------------------

    def hold(self, id_: bytes, rank: int) -> Reservation:
        """Others see that this rank writes until it is given back, or this session ends."""
        held = self.notes.reserve([(id_, rank)], [1])
        held.check()
        return held

    def writes(self, id_: bytes, ranks: Sequence[int]) -> List[bool]:
        """Of each rank: does it?"""
        hits = self.notes.lookup([(id_, rank) for rank in ranks])
        return [hit.status != -errno.ENOENT for hit in hits]

    def has_begun(self, id_: bytes, rank: int) -> bool:
        """Did this rank begin to write, and not end well?"""
        return any(
            entry.document["id"] == id_.hex() and rank in dict(entry.document["blocks"])
            for entry in self._entries(b"intent")
        )

    def _is_written(self, intent: Document) -> bool:
        return any(self.writes(bytes.fromhex(intent["id"]), range(intent["world_size"])))

    # --- Slots ------------------------------------------------------------------------------------------------------

    def _entries(self, kind: bytes) -> List[Entry]:
        hits = self.data.lookup([(kind, slot) for slot in range(SLOTS)])
        slots = [slot for slot, hit in enumerate(hits) if hit.status == 0]
        buffers = [bytearray(hits[slot].size) for slot in slots]
        statuses = self.data.get([(kind, slot) for slot in slots], buffers).check(errno.ENOENT, errno.EBADMSG)
        return [Entry(slot, json.loads(b)) for slot, b, status in zip(slots, buffers, statuses) if status == 0]

    def _is_still(self, kind: bytes, entry: Entry) -> bool:
        """Or has the slot another document by now?"""
        buffer = bytearray(len(encode(entry.document)) + 1)
        statuses = self.data.get([(kind, entry.slot)], [buffer])
        return statuses[0] == 0 and json.loads(buffer[: statuses.sizes[0]])["id"] == entry.document["id"]

    def _claim(self, kind: bytes, document: Document) -> int:
        """Puts a document into a free slot, and makes it durable."""
        data = encode(document)
        # Any, not the first: a slot that was given up a moment ago has its old contents again after a crash.
        for slot in random.Random(os.urandom(8)).sample(range(SLOTS), SLOTS):
            status = self.data.put([(kind, slot)], [data]).check(errno.EEXIST, errno.EINPROGRESS)[0]
            if status == 0:
                self.data.sync([(kind, slot)])
                return slot
        raise NoSpace(errno.ENOSPC, f"pool {self.pool.name!r} has {SLOTS} snapshots: delete some")


def _name(document: Document) -> Tuple[str, str]:
    return document["optimizer"], document["name"]


def _age(document: Document) -> Tuple[int, str]:
    return document["generation"], document["id"]


def _newest(entries: Sequence[Entry]) -> List[Entry]:
    found: Dict[Tuple[str, str], Entry] = {}
    for entry in entries:
        check_format(entry.document)
        key = _name(entry.document)
        if key not in found or _age(found[key].document) < _age(entry.document):
            found[key] = entry
    return sorted(found.values(), key=lambda entry: float(entry.document["time"]))
