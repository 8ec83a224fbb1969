# SPDX-License-Identifier: Apache-2.0
"""Snapshots of optimizers that are in a pool: listed, deleted, and loaded by any number of ranks."""
from __future__ import annotations

import errno
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, List, Optional, Tuple

import torch

from ..errors import NotFound
from ..session import Pool
from ..views import View, Views
from . import manifest
from .catalog import INDEX, Catalog, Entry, data_key
from .manifest import PARAMETER, Document
from .memory import floats

if TYPE_CHECKING:
    from .adamw import OffloadAdamW, _Group, _Taken


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that is in a pool. optimizer: the `name` of whose it is. nbytes: of its data. time: when it was begun,
    in seconds since 1970. world_size: how many ranks saved it; any number can load it."""

    name: str
    optimizer: str
    nbytes: int
    time: float
    world_size: int
    _catalog: Catalog = field(repr=False, compare=False)
    _entry: Entry = field(repr=False, compare=False)

    def delete(self) -> None:
        """It is gone when this returns, whatever happens then. One that is gone already is no error."""
        self._catalog.remove(self._entry)


def snapshots(pool: Pool) -> List[Snapshot]:
    """What the pool has, the oldest first. SpillwayError with ENODEV: the pool has no device to keep any."""
    found = []
    catalog = Catalog(pool)
    for entry in catalog.newest():
        d = entry.document
        nbytes = sum(shard["bytes"] for shard in d["shards"])
        found.append(Snapshot(d["name"], d["optimizer"], nbytes, d["time"], len(d["shards"]), catalog, entry))
    return found


def find(catalog: Catalog, optimizer: str, name: str) -> Document:
    """The manifest of that name. NotFound says which there are."""
    entries = catalog.newest()
    for entry in entries:
        if (entry.document["optimizer"], entry.document["name"]) == (optimizer, name):
            return entry.document
    here = [repr(e.document["name"]) for e in entries if e.document["optimizer"] == optimizer]
    others = sorted({repr(e.document["optimizer"]) for e in entries if e.document["optimizer"] != optimizer})
    there = f"there {'are' if len(here) > 1 else 'is'} {', '.join(here)}" if here else "there is none"
    more = f" (and snapshots of optimizers named {', '.join(others)})" if others else ""
    raise NotFound(errno.ENOENT, f"no snapshot {name!r} of optimizer {optimizer!r} in {catalog.pool!r}: {there}{more}")


class Reader:
    """The data of one snapshot, by ranges of parameters. Keeps one block leased: what is read in order is read once."""

    def __init__(self, catalog: Catalog, document: Document) -> None:
        self._data = catalog.data
        self._id = bytes.fromhex(document["id"])
        self._map = manifest.Map()
        self._at: Optional[Tuple[int, int]] = None
        self._views: Optional[Views] = None
        for shard in document["shards"]:
            self._map.add(shard["rank"], manifest.blocks_of(self._index(shard["rank"])))

    def _index(self, rank: int) -> Document:
        key = data_key(self._id, rank, INDEX)
        buffer = bytearray(self._data.lookup([key])[0].size)
        self._data.get([key], [buffer]).check()
        index: Document = json.loads(buffer)
        return index

    def has(self, parameter: int, array: str) -> bool:
        """Is there anything of an array of a parameter?"""
        return self._map.has(parameter, array)

    def read(self, parameter: int, array: str, first: int, to: torch.Tensor) -> None:
        """Elements from `first` on, as many as there is room for."""
        for place in self._map.find(parameter, array, first, to.numel()):
            view = self._block(place.rank, place.block)
            to[place.first - first : place.first - first + place.n] = floats(view.address + place.offset, place.n)

    def _block(self, rank: int, number: int) -> View:
        if self._at != (rank, number):
            self.close()
            views = self._data.acquire([data_key(self._id, rank, number)])
            views.check()
            self._at, self._views = (rank, number), views
        assert self._views is not None
        return self._views[0]

    def close(self) -> None:
        """Gives the block back."""
        views, self._views, self._at = self._views, None, None
        if views is not None:
            views.release()


def load(optimizer: "OffloadAdamW", name: str, of: str) -> None:
    """OffloadAdamW.load()."""
    catalog = optimizer._saver.catalog
    document = find(catalog, of, name)
    number = manifest.check_parameters(document["parameters"], optimizer._descriptions())
    if len(document["groups"]) != len(optimizer.param_groups):
        raise ValueError(
            f"the snapshot has {len(document['groups'])} parameter groups, not {len(optimizer.param_groups)}"
        )
    number_of = dict(zip(optimizer._params(), number))
    reader = Reader(catalog, document)

    def scatter(group: "_Group", taken: "_Taken") -> None:
        for p, array, extent, here in optimizer._named(group, taken.views):
            if array != "master":
                reader.read(number_of[p], array, extent.first, here)
            elif reader.has(number_of[p], PARAMETER):
                reader.read(number_of[p], PARAMETER, extent.first, here)
                p.detach().view(-1)[extent.first : extent.first + extent.n] = here

    optimizer._broken = True
    try:
        # Who reads blocks with a group leased needs room for more than a step does.
        optimizer._each_group(scatter, ahead=optimizer._saver.copies_ahead)
        for p, first, n in optimizer._bare():
            if reader.has(number_of[p], PARAMETER):
                reader.read(number_of[p], PARAMETER, first, p.detach().view(-1)[first : first + n])
    finally:
        reader.close()
    optimizer.ranks.exchange(optimizer._params())
    for mine, saved in zip(optimizer.param_groups, document["groups"]):
        mine.update({**saved, "betas": tuple(saved["betas"])})
    optimizer._steps = {p: document["parameters"][i]["step"] for p, i in number_of.items()}
    optimizer._steps = {p: step for p, step in optimizer._steps.items() if step}
    optimizer._broken = False
