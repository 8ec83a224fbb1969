# SPDX-License-Identifier: Apache-2.0
"""A snapshot of an optimizer that is being made, while it trains: durable as a whole or not at all.

    snapshot()  returns ──────────────┐
    thread "copier"     copy what is in memory ┐
    step()                                     lease i, copy it if it was not yet │ step i
    thread "committer"                                            index, SYNC │ manifest, SYNC: it is there

Each chunk becomes a block: the daemon copies it where it lies (put_from_views), so states do not go through the client.
A chunk is copied by whoever comes first, once: the copier, or the lease for writing that the step takes, which is
granted only when the copy was made. Both take some chunks at a time, since calls of the daemon's for each one take
longer than the copies. Where the states do not all fit in memory the copier leaves all of it to the step, which will
have them in memory anyway, or to wait(). Parameters that have no master are copied along with their states, by the
optimizer's workers.
"""
from __future__ import annotations

import errno
import threading
from typing import (
    TYPE_CHECKING,
    Callable,
    Collection,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
    TypeVar,
)

from ..errors import NoSpace, SpillwayError
from ..space import Space
from ..views import Reservation, View
from . import manifest, timeline
from .catalog import INDEX, SYNC_BYTES, Entry, data_key
from .manifest import PARAMETER, Block, Document, Run

if TYPE_CHECKING:
    from .adamw import OffloadAdamW
    from .saver import Saver

_Item = TypeVar("_Item")
Chunk = Tuple[int, int]  # the lane's number, and the chunk's in it


class Plan:
    """Which blocks the shard of an optimizer becomes: fixed, as its layout is."""

    def __init__(self, optimizer: "OffloadAdamW", parameters: bool) -> None:
        self.parameters = parameters
        self.number: Dict[Chunk, int] = {}  # of a chunk's block; that of its parameters, if any, is further on
        self.blocks: List[Block] = []
        number = {p: i for i, p in enumerate(optimizer._params())}
        self._bare: Dict[Chunk, int] = {}
        for lane in optimizer._lanes:
            arrays = (PARAMETER,) * lane.masters + manifest.STATES
            for chunk, extents in enumerate(lane.layout.chunks):
                runs = [Run(number[lane.params[e.tensor]], e.first, e.n, e.at) for e in map(lane.whole, extents)]
                self.number[lane.number, chunk] = len(self.blocks)
                self.blocks.append(Block(arrays, lane.layout.chunk_elements(chunk), runs))
        if parameters:
            for key, states in list(self.number.items()):
                if PARAMETER not in self.blocks[states].arrays:
                    self._bare[key] = len(self.blocks)
                    self.blocks.append(self.blocks[states]._replace(arrays=(PARAMETER,)))

    def bare(self, chunk: Chunk) -> Optional[int]:
        """The block of the parameters themselves, where a chunk has no masters."""
        return self._bare.get(chunk)

    @property
    def nbytes(self) -> int:
        """Of all blocks."""
        return sum(block.nbytes for block in self.blocks)


class Ticket(NamedTuple):
    """What a snapshot needs before any of its data: a note of what there will be, and that its writer lives."""

    intent: Entry
    held: Reservation


class Saving:
    """A snapshot that is being made. `blocked`: seconds for which steps waited for its copies, until now."""

    def __init__(self, saver: "Saver", plan: Plan, id_: bytes, name: str, document: Document) -> None:
        self.name = name
        self.id = id_  # the same at all ranks
        self.blocked = 0.0
        self._saver = saver
        self._plan = plan
        self._document = document
        self._turn = threading.Condition()
        self._left = dict.fromkeys(plan.number)  # whose copies nobody has begun, in order
        self._busy: Dict[Chunk, None] = {}
        self._error: Optional[Exception] = None
        self._begun = threading.Event()
        self._end = threading.Event()
        self._ticket: Optional[Ticket] = None

    def done(self) -> bool:
        """Is it durable, or did it fail?"""
        return self._end.is_set()

    def wait(self, timeout: Optional[float] = None) -> None:
        """Returns when it is durable; raises why it will never be. What steps have not come to is copied now.

        TimeoutError after so many seconds; the snapshot goes on.
        """
        if self.copying:
            self._saver.copier.submit(self._copy_rest, False)
        if not self._end.wait(timeout):
            raise TimeoutError(f"snapshot {self.name!r} is not durable yet")
        if self._error is not None:
            raise self._error

    @property
    def copying(self) -> bool:
        """Are there states that were not copied yet? Then they, and parameters, are changed by step() alone."""
        with self._turn:
            return bool(self._left or self._busy)

    # --- Copies

    def begin(self) -> None:
        """What must be durable before any data are; then the copies that can be made at once."""
        try:
            self._ticket = self._saver.take_ticket(self.id)
            self._saver.check_room(self._plan)
        except Exception as error:
            self._fail(error)
        finally:
            self._begun.set()
        if not self._plan.blocks and self._error is None:
            self._saver.committer.submit(self._commit)  # a rank without a part
        if self._saver.copies_ahead:
            self._copy_rest(True)
        self._saver.make_ticket()

    def copy(self, leased: Dict[Chunk, View]) -> None:
        """Sees to it that these chunks' copies were made: makes them, or waits for whoever does."""
        self._begun.wait()
        while True:
            claimed = self._claim(leased)
            if claimed:
                self._make(claimed, [leased[chunk] for chunk in claimed])
            with self._turn:
                while any(chunk in self._busy for chunk in leased):
                    self._turn.wait()
                if not any(chunk in self._left for chunk in leased):  # as where the copier got no lease
                    return

    def _claim(self, chunks: Iterable[Chunk]) -> List[Chunk]:
        """Those of them whose copies nobody has begun; the caller has, from now on."""
        with self._turn:
            claimed = [chunk for chunk in chunks if chunk in self._left]
            for chunk in claimed:
                del self._left[chunk]
                self._busy[chunk] = None
        return claimed

    def _make(self, chunks: List[Chunk], views: List[View]) -> None:
        copied: List[Chunk] = []
        try:
            self._put(chunks, views)
            copied = chunks
        except Exception as error:
            self._fail(error)
        finally:
            self._settle(chunks, copied)

    def _settle(self, chunks: List[Chunk], copied: Collection[Chunk]) -> None:
        """What has become of claimed ones."""
        with self._turn:
            for chunk in chunks:
                del self._busy[chunk]
                if chunk not in copied and self._error is None:
                    self._left[chunk] = None
            self._turn.notify_all()
            is_last = not self._left and not self._busy and self._error is None
        if is_last:
            self._saver.committer.submit(self._commit)

    def _copy_rest(self, only_resident: bool) -> None:
        """Of the copier's: some chunks after the other, leased for their copies alone."""
        with self._turn:
            left = list(self._left)
        for some in _parts(left, self._saver.copies_at_once):
            claimed = self._claim(some)
            if claimed:
                self._copy_claimed(claimed, only_resident)

    def _copy_claimed(self, chunks: List[Chunk], only_resident: bool) -> None:
        copied: Dict[Chunk, View] = {}
        try:
            keys = [self._saver.key(*chunk) for chunk in chunks]
            views = self._saver.space.acquire(keys, no_wait=only_resident)
            try:
                views.check(*((errno.EAGAIN, errno.ENOSPC) if only_resident else ()))
                there = {chunk: view for chunk, view in zip(chunks, views) if view.status == 0}
                if there:
                    self._put(list(there), list(there.values()))
                copied = there
            finally:
                views.release()
                self._saver.left(chunks)
        except Exception as error:
            self._fail(error)
        self._settle(chunks, copied)

    @timeline.spanned("snapshot copy")
    def _put(self, chunks: List[Chunk], views: List[View]) -> None:
        data, rank = self._saver.catalog.data, self._saver.rank
        keys = [data_key(self.id, rank, self._plan.number[chunk]) for chunk in chunks]
        bare = [number for number in map(self._plan.bare, chunks) if number is not None]
        try:
            _put_states(data, keys, views)
            for some in _parts(bare, self._saver.copies_at_once):
                self._put_parameters(some)
            keys += [data_key(self.id, rank, number) for number in bare]
            data.advise(keys, "not_again")  # what its device has need not be in memory
        except NoSpace as error:
            raise self._no_space(error) from error

    def _put_parameters(self, numbers: List[int]) -> None:
        blocks = [self._plan.blocks[number] for number in numbers]
        keys = [data_key(self.id, self._saver.rank, number) for number in numbers]
        with self._saver.catalog.data.reserve(keys, [block.nbytes for block in blocks]) as room:
            room.check()
            self._saver.copy_parameters((block.runs, view.address) for block, view in zip(blocks, room))

    def _no_space(self, error: NoSpace) -> NoSpace:
        stat = self._saver.catalog.data.stat()
        return NoSpace(
            errno.ENOSPC,
            f"snapshot {self.name!r} takes {mib(self._plan.nbytes)} MiB of pool {self._saver.catalog.pool.name!r}, "
            f"whose share of the devices is {mib(stat.nvme_budget)} MiB, {mib(stat.nvme_used)} MiB of it used: raise "
            f"`nvme` of it, or delete snapshots ({error.strerror})",
            error.limit,
        )

    # --- The commit

    @timeline.spanned("snapshot commit")
    def _commit(self) -> None:
        saver, data = self._saver, self._saver.catalog.data
        try:
            index = data_key(self.id, saver.rank, INDEX)
            data.put([index], [manifest.encode(manifest.index_of(self._plan.blocks))]).check()
            keys = [data_key(self.id, saver.rank, number) for number in range(len(self._plan.blocks))] + [index]
            step = max(SYNC_BYTES // data.piece_bytes, 1)
            for first in range(0, len(keys), step):
                data.sync(keys[first : first + step])
            shard = {"rank": saver.rank, "blocks": len(self._plan.blocks), "bytes": self._plan.nbytes}
            saver.rendezvous.commit(self.id, {**shard, "name": self.name}, self._commit_all)
        except NoSpace as error:
            self._fail(self._no_space(error))
            return
        except Exception as error:
            self._fail(error)
            return
        self._end.set()
        give_back(self._ticket, saver.catalog.forget)
        if saver.rank == 0:
            saver.sweep()

    def _commit_all(self, shards: List[Document]) -> None:
        """All shards are durable. Of rank 0 alone."""
        for shard in shards:
            if shard.pop("name") != self.name:
                words = f"rank {shard['rank']} saves a snapshot of another name than {self.name!r}"
                raise SpillwayError(errno.EINVAL, words)
        self._saver.catalog.commit({**self._document, "id": self.id.hex(), "shards": shards})

    def _fail(self, error: Exception) -> None:
        """It will not be. Who else copies meanwhile deletes nothing, and is waited for."""
        with self._turn:
            if self._error is not None:
                return
            self._error = error
            self._left.clear()
        self._saver.committer.submit(self._give_up)

    def _give_up(self) -> None:
        with self._turn:
            while self._busy:
                self._turn.wait()
        assert self._error is not None
        try:
            self._saver.rendezvous.refuse(self.id, self._error)
        except OSError:
            pass  # the session is over, which others see
        finally:
            give_back(self._ticket, self._saver.catalog.drop)
            self._end.set()


def give_back(ticket: Optional[Ticket], end: Callable[[Entry], None]) -> None:
    """Where that fails, the session is over, or who saves next does it."""
    if ticket is None:
        return
    try:
        end(ticket.intent)
        ticket.held.abort()
    except OSError:
        pass


def _put_states(data: Space, keys: List[Tuple[bytes, int]], views: List[View]) -> None:
    """By the daemon, if one of its engines has both spaces; else by this thread."""
    try:
        data.put_from_views(keys, views).check()
    except SpillwayError as error:
        if error.errno != errno.EBADF:
            raise
        data.put(keys, views).check()


def _parts(items: List[_Item], n: int) -> Iterator[List[_Item]]:
    return (items[first : first + n] for first in range(0, len(items), n))


def mib(nbytes: int) -> int:
    """Rounded up."""
    return -(-nbytes >> 20)
