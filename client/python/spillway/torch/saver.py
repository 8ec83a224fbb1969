# SPDX-License-Identifier: Apache-2.0
"""What an optimizer has for its snapshots: two threads, what the next one needs, and the fence before a step's changes.

The copier makes copies, and what the next snapshot needs before its data; the committer makes snapshots durable, one
after the other, and deletes what they replace.
"""
from __future__ import annotations

import errno
import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Optional, Tuple

from .. import train
from ..errors import NoSpace
from ..space import Space
from ..views import Views
from . import manifest
from .catalog import Catalog
from .manifest import Document, Run
from .rendezvous import Rendezvous
from .saving import Plan, Saving, Ticket, give_back, mib

if TYPE_CHECKING:
    from .adamw import OffloadAdamW, _Group


COPIES_AT_ONCE = 32  # chunks, or parameters of theirs, that are leased, where the pool has room for that


class Saver:
    """What an optimizer needs for its snapshots: threads, the catalog, and which of them still copy."""

    def __init__(self, optimizer: "OffloadAdamW") -> None:
        self._optimizer = optimizer
        self.space: Space = optimizer._space
        self.rank: int = optimizer.ranks.rank
        self.world_size: int = optimizer.ranks.world_size
        self.copier: ThreadPoolExecutor = ThreadPoolExecutor(1, "spillway-copier")
        self.committer: ThreadPoolExecutor = ThreadPoolExecutor(1, "spillway-committer")
        self._catalog: Optional[Catalog] = None
        self._rendezvous: Optional[Rendezvous] = None
        self._plans: Dict[bool, Plan] = {}
        self._savings: List[Saving] = []
        self._job = optimizer.ranks.job or os.urandom(16)
        self._n = 0  # snapshots that were begun
        self._tickets: Dict[bytes, Ticket] = {}
        self._fenced: Tuple[float, List[Saving]] = (0.0, [])
        # A lease more must not be what a step lacks; nor should copies bring the order of its accesses into disorder.
        room = (n for n in range(COPIES_AT_ONCE, 0, -1) if optimizer._has_room_for(2 * n * self.space.piece_bytes))
        n = next(room, 0)
        self.copies_at_once: int = max(n, 1)
        self.copies_ahead: bool = n > 0

    @property
    def catalog(self) -> Catalog:
        """Of the optimizer's pool."""
        if self._catalog is None:
            self._catalog = Catalog(self._optimizer.pool)
        return self._catalog

    @property
    def rendezvous(self) -> Rendezvous:
        """With the other ranks."""
        if self._rendezvous is None:
            self._rendezvous = Rendezvous(self.catalog, self.rank, self.world_size)
        return self._rendezvous

    def key(self, lane: int, chunk: int) -> Tuple[bytes, int]:
        """Of a chunk of the optimizer's."""
        return self._optimizer._key(lane, chunk)

    def left(self, chunks: Iterable[Tuple[int, int]]) -> None:
        """Were leased for their copies, and are not any more."""
        self._optimizer._left([self.key(*chunk) for chunk in chunks])

    def begin(self, name: str, parameters: bool) -> Saving:
        """Begins a snapshot of what the states are now."""
        if parameters not in self._plans:
            self._plans[parameters] = Plan(self._optimizer, parameters)
        plan = self._plans[parameters]
        if self._catalog is None:
            self._catalog = Catalog(self._optimizer.pool)
            self.copier.submit(self.sweep)
        saving = Saving(self, plan, self._next_id(), name, self._document(name, parameters))
        self._n += 1
        self._savings = [s for s in self._savings if s.copying] + [saving]
        self.copier.submit(saving.begin)
        return saving

    def sweep(self) -> None:
        """What others have left is deleted. Where that fails, who saves next does it."""
        try:
            self.catalog.sweep()
        except OSError:
            pass

    def check_room(self, plan: Plan) -> None:
        """NoSpace if the pool can never have it."""
        pool = self.catalog.pool
        if plan.nbytes > pool.info.nvme_bytes:
            raise NoSpace(
                errno.ENOSPC,
                f"a snapshot takes {mib(plan.nbytes)} MiB on a device, and pool {pool.name!r} has "
                f"{mib(pool.info.nvme_bytes)} MiB there: raise `nvme` of [pool {pool.name}]",
            )

    def take_ticket(self, id_: bytes) -> Ticket:
        """For a snapshot that begins. The copier's."""
        return self._tickets.pop(id_) if id_ in self._tickets else self._new_ticket(id_)

    def make_ticket(self) -> None:
        """For the next snapshot, ahead of need, since it takes a SYNC. The copier's."""
        id_ = self._next_id()
        try:
            self._tickets[id_] = self._tickets.get(id_) or self._new_ticket(id_)
        except OSError:
            pass  # the next snapshot will say so

    def _next_id(self) -> bytes:
        return hashlib.sha256(self._job + self._n.to_bytes(8, "big")).digest()[:16]

    def _new_ticket(self, id_: bytes) -> Ticket:
        held = self.catalog.hold(id_, self.rank)
        try:
            n_blocks = 2 * max(len(plan.number) for plan in self._plans.values())  # states and parameters
            return Ticket(self.catalog.intend(id_, {self.rank: n_blocks}, self.world_size), held)
        except OSError:
            held.abort()
            raise

    def _document(self, name: str, parameters: bool) -> Document:
        optimizer = self._optimizer
        return {
            "format": manifest.FORMAT,
            "kind": manifest.KIND,
            "optimizer": optimizer.name,
            "name": name,
            "time": time.time(),
            "has_parameters": parameters,
            "parameters": optimizer._descriptions(),
            "groups": [{k: _plain(g[k]) for k in manifest.NUMBERS} for g in optimizer.param_groups],
        }

    # --- The fence of a step

    def fence(self, group: "_Group", views: Views) -> None:
        """The group is leased for writing, and may be written when this returns."""
        savings = [s for s in self._savings if s.copying]
        began = time.perf_counter()
        leased = {(group.lane.number, chunk): view for chunk, view in enumerate(views, group.first)}
        for saving in savings:
            saving.copy(leased)
        self._fenced = time.perf_counter() - began, savings

    def waited(self, seconds: float) -> None:
        """So long a step has waited for its latest group: without the fence, by what it took, less."""
        at_fence, savings = self._fenced
        for saving in savings:
            saving.blocked += min(seconds, at_fence)
        self._fenced = 0.0, []

    def copy_parameters(self, blocks: Iterable[Tuple[Iterable[Run], int]]) -> None:
        """Parameters' own elements, of some blocks' runs, to the arrays that begin at these addresses."""
        params = self._optimizer._params()
        copies = [
            (address + 4 * run.at, params[run.parameter].data_ptr() + 4 * run.first, 4 * run.n)
            for runs, address in blocks
            for run in runs
        ]
        train.copy(copies, self._optimizer._workers)

    def close(self) -> None:
        """Waits for what is being made; what steps have not come to is copied now."""
        for saving in self._savings:
            if saving.copying:
                self.copier.submit(saving._copy_rest, False)
        self.copier.shutdown()
        self.committer.shutdown()
        for ticket in self._tickets.values():
            give_back(ticket, self.catalog.forget)
        self._tickets.clear()


def _plain(value: Any) -> Any:
    """A number of a parameter group, as JSON has it."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return float(value)
