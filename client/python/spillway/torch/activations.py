# SPDX-License-Identifier: Apache-2.0
"""Activations that wait in the daemon's pool for the backward pass.

    forward    save 1 │ save 2 │ save 3 │ …          a save queues a copy, and holds the tensor until that has ended
    writer            │ put 1  │ put 2  │ …          (source free): then the memory goes
    backward                            … │ use 3 │ use 2 │ use 1
    reader                                │ get 2 │ get 1 │     in the order of need, some bytes ahead

What is stored is a storage, once, however many tensors of the graph are views of it; views are made anew for backward.
A tensor that backward needs while its memory is still there is handed out as it is, and a copy that has not begun is
left out: forwarding. So is what others hold anyway. A block lives as long as the graph's handles on it: it goes with
the backward pass that frees them, stays with retain_graph=True, and goes as well if no backward pass ever comes.

    QUEUED → PUTTING → STORED    a copy
    QUEUED → KEPT                backward began before its copy did; or more than may be in flight, from the start
    PUTTING → KEPT               the pool had no room, or failed; or backward has it, and the copy is given up
    STORED → WANTED → LOADING    a read ahead of backward
    STORED, WANTED → LOADING     a read by backward itself
    LOADING → LOADED             or back to STORED, if it fails
    LOADED → STORED              all tensors of it were handed out: they have the bytes, and the block is still there

A GPU is behind the host that feeds it, which for it would have taken all the memory before the first copy can begin. So
the host is held back, to be a few storages ahead and no more; and all that is saved is queued, in the order in which it
is needed last. The link copies as much as it can until the GPU begins backward, and the rest is forwarded: that is as
much as hides behind forward, whatever the rates are. Backward gives memory back, of which half goes to reads.

Where the host is not ahead, as with many small kernels, whatever it does here the GPU waits for, and the slower forward
becomes, the more could be copied. So what is saved while the GPU has nothing to do is kept; and after a pass of which
more was kept for that than stored, only the largest are looked at, and no more than twice of what can be stored.

Handles and activations end wherever the garbage collector runs, in the middle of this code too. So their ends take no
lock: they put what is to be done into a queue.
"""
from __future__ import annotations

import bisect
import enum
import errno
import functools
import itertools
import os
import threading
import time
import weakref
from collections import deque
from queue import SimpleQueue
from typing import Any, Callable, Deque, Dict, List, NamedTuple, Optional, Tuple, Type

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from .._convert import choice
from .._native import ffi
from ..errors import Limit, NoSpace, NoSpaceInTime, SpillwayError
from ..session import Pool, Session
from ..space import Space
from .activations_link import Link, Pass

ON_FULL = {"keep": 0, "wait": 1, "raise": 2}
FULL_SECONDS = 1.0  # a pool without room for so long is full, but for who waits
AHEAD_STORAGES = 2  # that a GPU has yet to compute, however large they are: one at work, and one that is queued

_KINDS = (torch.Tensor, torch.nn.Parameter)  # others have ways of their own

# Key of a block: bytes that no other context has, and the storage's number.
_NAME_BYTES = 16
_NUMBER_BYTES = 8


class ActivationStats(NamedTuple):
    """What a context did so far, in bytes.

    offloaded: were stored. kept: of tensors that stayed as they are, by why: "small"; "leaf" (parameters, and whatever
    else requires a gradient itself); "kind" (sparse, quantised, of a class of its own); "device" (no way from there to
    the pool); "in_flight" (the pool was too slow for the CPU); "host" (the GPU waited for the host, which had no time
    for this; or it did so in passes before, and this is not of the largest); "full" (the pool had no room).
    deduplicated: of tensors whose storage was saved before. forwarded: backward began, or needed them, before they had
    been stored. resident: had been stored, but were still in memory when they were needed. loaded: came from the pool.
    waited_seconds: of the backward pass for that, on the host. peak_in_flight: at most so many waited for their copy,
    or were being copied.
    On a GPU: copied: of what was offloaded, by the copy engine to memory that stays mapped. put_seconds, get_seconds:
    that this took, each way. overtaken: how many copies had begun when backward needed what they copy.
    """

    offloaded: int
    kept: Dict[str, int]
    deduplicated: int
    forwarded: int
    resident: int
    loaded: int
    waited_seconds: float
    peak_in_flight: int
    copied: int
    put_seconds: float
    get_seconds: float
    overtaken: int


# --- Threads ----------------------------------------------------------------------------------------------------------


class _Worker:
    """Threads that do one job after the other, and end when nobody has their worker any more."""

    def __init__(self, name: str, threads: int) -> None:
        jobs: "SimpleQueue[Optional[Callable[[], None]]]" = SimpleQueue()
        self.submit = jobs.put  # from finalisers too
        for _ in range(threads):
            threading.Thread(target=_work, args=(jobs,), name=name, daemon=True).start()
            weakref.finalize(self, jobs.put, None)


def _work(jobs: "SimpleQueue[Optional[Callable[[], None]]]") -> None:
    while True:
        job = jobs.get()
        if job is None:
            return
        job()
        del job  # and what it holds, before the next one comes


class _Workers(NamedTuple):
    writer: _Worker
    reader: _Worker


_workers: "weakref.WeakKeyDictionary[Session, Dict[str, _Workers]]" = weakref.WeakKeyDictionary()
_workers_lock = threading.Lock()


def _workers_of(session: Session, what: str = "cpu", threads: int = 1) -> _Workers:
    """They outlast contexts: each has a ring of the daemon's, which is not made anew for each step."""
    with _workers_lock:
        found = _workers.setdefault(session, {})
        if what not in found:
            found[what] = _Workers(_Worker("spillway-writer", threads), _Worker("spillway-reader", threads))
        return found[what]


# --- Copying ----------------------------------------------------------------------------------------------------------


class _Mover:
    """Copies storages of a device's to the pool and back, in threads of its own, without the GIL.

    An origin is what it has to know of a storage when that is saved; a room, where a read puts it.
    """

    lags = False  # is the device behind the host, which queues its work?
    link: Optional[Link] = None  # where it does
    mark: Any = None  # the origin of what was looked at last, by which is seen if it is
    _own_mark: Any = None  # an origin of nothing but marks

    def __init__(self, space: Space, workers: _Workers) -> None:
        self._space = space
        self.workers = workers
        self.copied_bytes = 0  # put by a copy engine
        self.put_seconds = self.get_seconds = 0.0  # that it took, and for what came back

    def add_up(self) -> None:
        """What is measured is complete now."""

    def takes(self, storage: Any) -> bool:
        """Can it copy it?"""
        return True

    def origin(self) -> Any:
        """Of a storage that is saved now."""
        return None

    def is_computed(self, origin: Any) -> bool:
        """Are its bytes there?"""
        return True

    def wait_until_computed(self, origin: Any) -> None:
        """Returns when they are."""

    def origin_again(self, origin: Any) -> Any:
        """Of what is saved now. The one that is given, which nobody else has, may be used for it."""
        return self.origin()

    def host_has_time(self) -> bool:
        """Has the device yet to compute what was looked at last? At first nobody knows, and it has."""
        has_time = self.mark is None or not self.is_computed(self.mark)
        if not has_time:
            self.mark = self._own_mark = self.origin_again(self._own_mark)
        return has_time

    def room(self, nbytes: int, origin: Any) -> Any:
        """Of a read, taken when that is queued."""
        return None

    def put(self, key: bytes, storage: Any, timeout: Optional[float]) -> None:
        """Returns when the source is free, and the bytes are in the pool. timeout: to wait for room."""
        raise NotImplementedError

    def give_up(self, key: bytes) -> bool:
        """Of a put: it need not go on. False: it cannot be told to."""
        return False

    def get(self, key: bytes, nbytes: int, room: Any) -> Any:
        """A storage of its own."""
        raise NotImplementedError

    def drop(self, key: bytes) -> bool:
        """As delete(), of what can be forgotten at once, from a finaliser. False: it cannot."""
        return False

    def use(self, key: bytes, storage: Any, origin: Any) -> None:
        """It is handed out to the calling thread."""

    def delete(self, keys: List[bytes]) -> None:
        """Objects that nobody needs."""
        self._space.delete(keys)

    def _full(self, error: SpillwayError, key: bytes, nbytes: int) -> NoSpace:
        pool = self._space.pool
        limit = error.limit or self._met_limit(key, nbytes)
        kind: Type[NoSpace] = type(error) if isinstance(error, NoSpace) else NoSpaceInTime
        return kind(
            error.errno or errno.ENOSPC,
            f"pool {pool.name!r} has no room for {nbytes} bytes of activations"
            + (f": {limit.text}" if limit else f": raise `dram` or `nvme` of [pool {pool.name}]"),
            limit,
        )

    def _met_limit(self, key: bytes, nbytes: int) -> Optional[Limit]:
        """A put does not tell, a reservation does."""
        piece = self._space.piece_bytes
        sizes = [min(piece, nbytes - at) for at in range(0, nbytes, piece)]
        views = self._space.reserve([(key, i + 1) for i in range(len(sizes))], sizes, timeout=0)
        try:
            return next((view.limit for view in views if view.limit is not None), None)
        finally:
            views.abort()


class _CpuMover(_Mover):
    """To blocks."""

    def put(self, key: bytes, storage: Any, timeout: Optional[float]) -> None:
        try:
            self._space.put([key], [_bytes(storage)], timeout=timeout).check()
        except NoSpace as error:
            raise self._full(error, key, storage.nbytes()) from None

    def get(self, key: bytes, nbytes: int, room: Any) -> Any:
        storage = torch.UntypedStorage(nbytes)
        self._space.get([key], [_bytes(storage)]).check()
        return storage


def _bytes(storage: Any) -> Any:
    """A buffer over a storage's bytes, which must outlive it: nobody checks."""
    return ffi.buffer(ffi.cast("char *", storage.data_ptr()), storage.nbytes())


_UNTYPED = hasattr(torch.Tensor, "untyped_storage")  # torch 1.13 has it as an attribute of another


def _storage(tensor: torch.Tensor) -> Any:
    return tensor.untyped_storage() if _UNTYPED else tensor.storage().untyped()


# --- What is saved ----------------------------------------------------------------------------------------------------


class _State(enum.Enum):
    QUEUED = enum.auto()  # its put is
    PUTTING = enum.auto()
    KEPT = enum.auto()  # in memory, for good
    STORED = enum.auto()
    WANTED = enum.auto()  # stored, and a read is queued
    LOADING = enum.auto()
    LOADED = enum.auto()


_IN_STORE = (_State.STORED, _State.WANTED, _State.LOADING, _State.LOADED)


class _Activation:
    """A storage that tensors of the graph are views of. The offloader's lock guards what changes.

    storage: where it is in memory and held; None: STORED, WANTED, LOADING. seen: what it was in memory when it was last
    held. version: of `witness`, when it was saved. passed: the pass that queued it. room: of a read that is queued.
    uses: tensors that are views of it; left: those that backward has not yet asked for.
    """

    __slots__ = (
        "__weakref__",
        "key",
        "left",
        "mover",
        "nbytes",
        "number",
        "offloader",
        "origin",
        "passed",
        "room",
        "seen",
        "state",
        "storage",
        "uses",
        "version",
        "witness",
    )

    def __init__(self, offloader: "_Offloader", number: int, mover: _Mover, storage: Any, saved: "_Saved") -> None:
        self.state = _State.QUEUED  # first, for __del__, if something here fails
        self.offloader = offloader
        self.number = number
        self.key = offloader.name + number.to_bytes(_NUMBER_BYTES, "big")
        self.mover = mover
        self.origin = mover.origin()
        self.passed: Optional[Pass] = None
        self.room: Any = None
        self.storage = storage
        self.nbytes = storage.nbytes()
        self.seen = StorageWeakRef(storage)
        self.witness = saved.witness
        self.version = saved.version
        self.uses = self.left = 0

    def is_of(self, storage: Any, version: int) -> bool:
        """Is it of this storage and version? While a storage is `seen` no other has its address."""
        return self.seen.cdata == storage._cdata and self.version == self.witness._version == version

    def in_memory(self) -> Any:
        """The storage, if somebody holds it; or None."""
        if self.storage is not None:
            return self.storage
        return torch.UntypedStorage._new_with_weak_ptr(self.seen.cdata)

    def hand_out(self, storage: Any) -> None:
        """One of its tensors has got it. After the last one it is only theirs."""
        self.left -= 1
        if self.left > 0:
            return
        self.left = self.uses
        if self.state is _State.LOADED:
            self.state, self.storage = _State.STORED, None
            self.seen = StorageWeakRef(storage)

    def __del__(self) -> None:
        if self.state in _IN_STORE:
            self.offloader.forget(self.mover, self.key)


@functools.lru_cache(maxsize=None)
def _nothing(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor without bytes."""
    return torch.empty(0, dtype=dtype, device=device)


class _Saved:
    """What the graph has instead of a tensor.

    witness: a tensor that shares its version, which tells of changes in place. It is the tensor itself if that is kept;
    else it has no bytes, and `activation` has them. number: of the activation that was saved last before it.
    """

    __slots__ = ("activation", "device", "dtype", "number", "offset", "shape", "stride", "version", "witness")

    activation: Optional[_Activation]

    def __init__(self, tensor: torch.Tensor, number: int) -> None:
        self.number = number
        self.witness = tensor.detach()  # not the tensor: that has the graph
        self.version = tensor._version
        self.activation = None

    def move_to(self, activation: _Activation) -> None:
        """The bytes are the activation's from now on."""
        tensor = self.witness
        self.dtype, self.device = tensor.dtype, tensor.device
        self.shape, self.stride, self.offset = tensor.shape, tensor.stride(), tensor.storage_offset()
        tensor.data = _nothing(self.dtype, self.device)  # which leaves it its version
        self.activation = activation
        activation.uses += 1
        activation.left += 1

    def view_of(self, storage: Any) -> torch.Tensor:
        """The tensor anew."""
        return torch.empty(0, dtype=self.dtype, device=self.device).set_(storage, self.offset, self.shape, self.stride)

    def check_version(self) -> None:
        """As autograd does where no hooks are."""
        now = self.witness._version
        if now != self.version:
            shape = self.witness.shape if self.activation is None else self.shape
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{self.witness.dtype} {list(shape)}] is at version {now}; expected version {self.version} instead"
            )


# --- The hooks --------------------------------------------------------------------------------------------------------


class _Ahead(NamedTuple):
    """A storage that the GPU has yet to compute."""

    nbytes: int
    mover: _Mover
    origin: Any


class _Backward:
    """A backward pass: what was saved up to `number` is of its graph, or an older one.

    origin: when the device begins it. cursor: what was saved before it has not been looked at for reads. passed: what
    is between there and the pass, as the number that the pass is at when it is over, how much of it is read ahead, and
    how much memory it gives back. ahead_bytes: the sum of the former; freed_bytes: of the latter, so far. has_taken: it
    has used an activation.
    """

    def __init__(self, number: int, mover: Optional[_Mover], origin: Any, cursor: int) -> None:
        self.number = number
        self.mover = mover
        self.origin = origin
        self.cursor = cursor
        self.has_taken = False
        self.passed: Deque[Tuple[int, int, int]] = deque()
        self.ahead_bytes = self.freed_bytes = 0

    def is_begun(self) -> bool:
        return self.mover is not None and self.mover.is_computed(self.origin)

    def pass_by(self, number: int, read_bytes: int, kept_bytes: int) -> None:
        """What is kept gives its memory back after its use; to what is read its share belongs until then."""
        self.cursor = number
        self.passed.append((number - 1 if kept_bytes else number, read_bytes, kept_bytes))
        self.ahead_bytes += read_bytes

    def is_at(self, number: int) -> None:
        while self.passed and self.passed[0][0] >= number:
            _, read_bytes, kept_bytes = self.passed.popleft()
            self.ahead_bytes -= read_bytes
            self.freed_bytes += kept_bytes


class _Offloader:
    """What a context does. The graphs that were made in it have it as long as they live."""

    def __init__(
        self,
        pool: Pool,
        min_bytes: int,
        on_full: str,
        in_flight_bytes: int,
        prefetch_bytes: int,
        timeout: Optional[float],
    ) -> None:
        choice("on_full", ON_FULL, on_full)
        layout = {"what": "spillway.torch.offload_activations", "version": 1}
        space = pool.space(layout, class_="activation", durability="scratch")
        self.name = os.urandom(_NAME_BYTES)
        self._space = space
        self._session = pool.session
        self._movers: Dict[torch.device, Optional[_Mover]] = {}
        self._min_bytes = min_bytes
        self._on_full = on_full
        self._in_flight_bytes = in_flight_bytes
        self._prefetch_bytes = prefetch_bytes
        self._timeout = FULL_SECONDS if timeout is None and on_full != "wait" else timeout
        self._workers = _workers_of(pool.session)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._numbers = itertools.count()
        self._known: "weakref.WeakValueDictionary[int, _Activation]" = weakref.WeakValueDictionary()
        self._order: List[Tuple[int, "weakref.ref[_Activation]"]] = []
        self._order_limit = 0
        self._dead: Deque[Tuple[_Mover, bytes]] = deque()
        self._failure: Optional[Exception] = None
        self._in_flight = 0
        self._in_flight_of: Dict[int, int] = {}  # by number
        self._ahead: Deque[_Ahead] = deque()
        self._newest = -1  # number of what was saved last
        self._backward = _Backward(-1, None, None, -1)
        self._backward_at = -1  # the number that what is kept told last
        self._kept: Dict[str, int] = {}
        self._offloaded = self._deduplicated = self._forwarded = self._resident = self._loaded = 0
        self._waited = 0.0
        self._peak_in_flight = 0
        self._overtaken = 0

    @property
    def stats(self) -> ActivationStats:
        """So far."""
        with self._lock:
            movers = [mover for mover in self._movers.values() if mover is not None]
            for mover in movers:
                mover.add_up()
            return ActivationStats(
                self._offloaded,
                dict(self._kept),
                self._deduplicated,
                self._forwarded,
                self._resident,
                self._loaded,
                self._waited,
                self._peak_in_flight,
                sum(mover.copied_bytes for mover in movers),
                sum(mover.put_seconds for mover in movers),
                sum(mover.get_seconds for mover in movers),
                self._overtaken,
            )

    # What went wrong in a thread is an error of the next call that backward or forward makes.

    def begin(self) -> None:
        """Of a `with`: what went wrong was said in the one before."""
        with self._lock:
            self._failure = None

    def failure(self) -> Optional[Exception]:
        """A new exception each time: one that was raised keeps what its traceback has."""
        return None if self._failure is None else _again(self._failure)

    def _check(self) -> None:
        failure = self.failure()
        if failure is not None:
            raise failure

    # --- Forward

    def pack(self, tensor: torch.Tensor) -> _Saved:
        """The hook for what autograd saves."""
        self._session._check_process()
        saved = _Saved(tensor, self._newest)
        nbytes = tensor.numel() * tensor.element_size()
        why, storage = self._why_kept(tensor, nbytes)
        with self._lock:
            if self._failure is not None:
                self._check()
            if why is None:
                why = self._save(tensor, storage, saved)
            if why is not None:
                self._kept[why] = self._kept.get(why, 0) + nbytes
        if why is None:
            self._hold_back()
        return saved

    def _why_kept(self, tensor: torch.Tensor, nbytes: int) -> Tuple[Optional[str], Any]:
        """Why it is nothing to be stored; or None, and its storage. A model saves many that are small."""
        if type(tensor) not in _KINDS or tensor.layout is not torch.strided:
            return "kind", None
        if nbytes < self._min_bytes or nbytes == 0:
            return "small", None
        base = tensor._base if tensor._is_view() else tensor
        if base is None or issubclass(type(base), torch.nn.Parameter) or (base.is_leaf and base.requires_grad):
            return "leaf", None
        mover = self._mover_of(tensor.device)
        if mover is None:
            return "device", None
        if mover.link is not None and self._on_full == "keep" and mover.link.leaves_out(nbytes):
            return "host", None
        if tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
            return "kind", None
        storage = _storage(tensor)
        if storage.nbytes() < self._min_bytes:  # expanded
            return "small", None
        return None if mover.takes(storage) else "device", storage

    def _mover_of(self, device: torch.device) -> Optional[_Mover]:
        """None: there is no way from there to the pool."""
        if device not in self._movers:
            self._movers[device] = _new_mover(self._space, device) if device.type in ("cpu", "cuda") else None
        return self._movers[device]

    def _save(self, tensor: torch.Tensor, storage: Any, saved: _Saved) -> Optional[str]:
        """Finds the storage among those that are stored, or queues it. Else: why not."""
        activation = self._known.get(storage._cdata)
        if activation is not None and activation.is_of(storage, saved.version):
            self._deduplicated += tensor.numel() * tensor.element_size()
            saved.move_to(activation)
            return None
        mover = self._movers[tensor.device]
        assert mover is not None
        link = mover.link if self._on_full == "keep" else None
        if link is not None:
            nbytes = storage.nbytes()
            if not link.takes(nbytes):
                return "host"
            if not mover.host_has_time():
                link.refuse(nbytes)
                return "host"
        number = self._newest = next(self._numbers)
        activation = _Activation(self, number, mover, storage, saved)
        mover.mark = activation.origin
        saved.move_to(activation)
        self._known[storage._cdata] = activation
        if not self._enter(activation):
            activation.state = _State.KEPT  # so are its other views: to store it for them would free nothing
            return "in_flight"
        if link is not None:
            activation.passed = link.queue(activation.nbytes)
        self._remember(activation)
        mover.workers.writer.submit(functools.partial(self._put, weakref.ref(activation), number))
        return None

    def _enter(self, activation: _Activation) -> bool:
        """May it be in flight? One storage may at any time, however large it is. A pool that is too slow is not waited
        for; what a GPU has yet to compute does not wait for the pool."""
        nbytes, lags = activation.nbytes, activation.mover.lags
        while self._on_full == "wait" or not lags:
            backlog = self._in_flight - self._ahead_bytes()
            if backlog <= 0 or backlog + nbytes <= self._in_flight_bytes:
                break
            if self._on_full != "wait":
                return False
            self._changed.wait()
            self._check()
        self._in_flight_of[activation.number] = nbytes
        self._in_flight += nbytes
        self._peak_in_flight = max(self._peak_in_flight, self._in_flight)
        if lags:
            self._ahead.append(_Ahead(nbytes, activation.mover, activation.origin))
        return True

    def _ahead_bytes(self) -> int:
        """What is computed is so in the order of saves, more or less."""
        while self._ahead and self._ahead[0].mover.is_computed(self._ahead[0].origin):
            self._ahead.popleft()
        return sum(item.nbytes for item in self._ahead)

    def _hold_back(self) -> None:
        """Waits while the device is far behind."""
        while True:
            with self._lock:
                if self._ahead_bytes() <= self._in_flight_bytes or len(self._ahead) <= AHEAD_STORAGES:
                    return
                oldest = self._ahead[0]
            oldest.mover.wait_until_computed(oldest.origin)

    def _leave(self, number: int) -> None:
        """If it has not left yet, as what is forwarded before its copy begins."""
        self._in_flight -= self._in_flight_of.pop(number, 0)
        self._changed.notify_all()

    def _remember(self, activation: _Activation) -> None:
        """In the order of saves, without those that have gone."""
        if len(self._order) >= self._order_limit:
            self._order = [item for item in self._order if item[1]() is not None]
            self._order_limit = 2 * len(self._order) + 64
        self._order.append((activation.number, weakref.ref(activation)))

    def _put(self, reference: "weakref.ref[_Activation]", number: int) -> None:
        """In the writer."""
        activation = reference()
        if activation is None:  # its graph has gone
            with self._lock:
                self._leave(number)
            return
        failure: Optional[Exception] = None
        try:
            activation.mover.wait_until_computed(activation.origin)
            if not self._begin_put(activation):
                return
            activation.mover.put(activation.key, activation.storage, self._timeout)
        except Exception as error:  # is said by who saves or uses next
            failure = _again(error)
        with self._lock:
            self._leave(number)
            if failure is None:
                self._offloaded += activation.nbytes
                activation.state, activation.storage = _State.STORED, None
                if activation.passed is not None:
                    activation.passed.stored += activation.nbytes
                return
            if activation.state is _State.KEPT:  # given up
                return
            activation.state = _State.KEPT
            if isinstance(failure, NoSpace):
                self._kept["full"] = self._kept.get("full", 0) + activation.nbytes
                if self._on_full == "keep":
                    return
            self._failure = failure

    def _begin_put(self, activation: _Activation) -> bool:
        """Not if backward was there first."""
        with self._lock:
            if activation.state is not _State.QUEUED:
                return False
            if activation.number <= self._backward.number and self._backward.is_begun():
                self._forward(activation)
                return False
            activation.state = _State.PUTTING
            return True

    def _forward(self, activation: _Activation) -> None:
        """Without a copy."""
        activation.state = _State.KEPT
        self._leave(activation.number)
        self._forwarded += activation.nbytes

    # --- Backward

    def unpack(self, saved: _Saved) -> torch.Tensor:
        """The hook for what backward needs."""
        self._session._check_process()
        saved.check_version()
        activation = saved.activation
        if activation is not None:
            return saved.view_of(self._take(activation))
        if saved.number != self._backward_at:
            with self._lock:
                self._backward_is_at(saved.number)
        return saved.witness

    def _take(self, activation: _Activation) -> Any:
        """The activation's storage, in memory."""
        begin = time.monotonic()
        with self._lock:
            self._check()
            self._backward_needs(activation)
            while activation.state is _State.LOADING:
                self._changed.wait()
            storage = self._take_from_memory(activation)
            if storage is None:
                self._give_room(activation)
                activation.state = _State.LOADING
        if storage is None:
            storage = self._load(activation)
        activation.mover.use(activation.key, storage, activation.origin)
        with self._lock:
            activation.hand_out(storage)
            self._waited += time.monotonic() - begin
        return storage

    def _take_from_memory(self, activation: _Activation) -> Any:
        storage = activation.in_memory()
        if activation.state is _State.QUEUED:
            self._forward(activation)
        elif activation.state is _State.PUTTING:
            self._forwarded += activation.nbytes
            self._overtaken += 1
            if activation.mover.give_up(activation.key):  # or it would be in the way of the next graph's
                activation.state = _State.KEPT
        elif activation.state in (_State.STORED, _State.WANTED) and storage is not None:
            self._resident += activation.nbytes
        return storage

    def _backward_is_at(self, number: int) -> None:
        """It needs what is kept, and was saved after this number: what has that comes next, if it is of the graph."""
        self._backward_at = number
        if number > self._backward.number:
            saved = (item[1]() for item in reversed(self._order) if item[0] <= number)
            latest = next((activation for activation in saved if activation is not None), None)
            if latest is None:
                return
            self._begin_backward(number, latest.mover, number + 1)
        self._read_ahead(number + 1)

    def _backward_needs(self, activation: _Activation) -> None:
        number, last = activation.number, self._backward.number
        is_again = number == last and activation.left == activation.uses and self._backward.has_taken
        if number > last or is_again:
            self._begin_backward(number, activation.mover, number)
        self._backward.has_taken = True
        self._read_ahead(number)

    def _begin_backward(self, number: int, mover: _Mover, cursor: int) -> None:
        self._backward = _Backward(number, mover, mover.origin(), cursor)
        mover.mark = None
        if mover.link is not None:
            mover.link.backward_begins()

    def _read_ahead(self, upto: int) -> None:
        """Queues reads of what was saved before, which backward needs next: the next one, and so many bytes."""
        backward = self._backward
        backward.is_at(upto)
        window = self._prefetch_bytes + backward.freed_bytes // 2
        for i in range(bisect.bisect_left(self._order, (backward.cursor,)) - 1, -1, -1):
            before = self._order[i][1]()
            if before is None:
                continue
            if before.state not in _IN_STORE:
                backward.pass_by(before.number, 0, before.nbytes)
                continue
            if backward.passed and backward.ahead_bytes + before.nbytes > window:
                return
            if before.state is _State.STORED and before.seen.expired():
                try:
                    self._give_room(before)
                except RuntimeError:
                    return  # the device's memory is full
                before.state = _State.WANTED
                before.mover.workers.reader.submit(functools.partial(self._prefetch, weakref.ref(before)))
            backward.pass_by(before.number, before.nbytes, 0)

    def _give_room(self, activation: _Activation) -> None:
        """For a read."""
        if activation.room is None:
            activation.room = activation.mover.room(activation.nbytes, activation.origin)

    def _prefetch(self, reference: "weakref.ref[_Activation]") -> None:
        """In the reader."""
        activation = reference()
        if activation is None:
            return
        with self._lock:
            if activation.state is not _State.WANTED:
                return
            activation.state = _State.LOADING
        try:
            self._load(activation)
        except Exception:
            pass  # backward reads it itself, and says what is wrong

    def _load(self, activation: _Activation) -> Any:
        """LOADING, to LOADED or back to STORED."""
        storage = None
        try:
            storage = activation.mover.get(activation.key, activation.nbytes, activation.room)
        except SpillwayError as error:
            text = f"an activation of {activation.nbytes} bytes cannot be read back: {error.strerror}"
            raise type(error)(error.errno or errno.EIO, text, error.limit) from None
        finally:
            with self._lock:
                activation.state = _State.STORED if storage is None else _State.LOADED
                activation.storage, activation.room = storage, None
                self._loaded += 0 if storage is None else activation.nbytes
                self._changed.notify_all()
        return storage

    # --- The end

    def forget(self, mover: _Mover, key: bytes) -> None:
        """A block whose activation has gone. From a finaliser."""
        if mover.drop(key):
            return
        self._dead.append((mover, key))
        self._workers.reader.submit(self._bury)

    def _bury(self) -> None:
        """In the CPU's reader, which never waits for room: writers may wait for what is freed here."""
        keys: Dict[_Mover, List[bytes]] = {}
        while self._dead:
            mover, key = self._dead.popleft()
            keys.setdefault(mover, []).append(key)
        for mover, dead in keys.items():
            try:
                mover.delete(dead)
            except SpillwayError:
                pass  # the session is over, and the blocks go with their owner


def _new_mover(space: Space, device: torch.device) -> Optional[_Mover]:
    if device.type == "cpu":
        return _CpuMover(space, _workers_of(space.session))
    from .activations_gpu import new_mover

    return new_mover(space, device)


def _again(error: Exception) -> Exception:
    """The same exception, without what led to it."""
    if isinstance(error, SpillwayError):
        return type(error)(error.errno or errno.EIO, error.strerror or str(error), error.limit)
    return RuntimeError(f"an activation was not stored: {type(error).__name__}: {error}")


class offload_activations(torch.autograd.graph.saved_tensors_hooks):
    """A context in which what autograd saves for the backward pass goes to a pool of spillwayd's.

        with spw.offload_activations(pool):
            loss = model(x).sum()
        loss.backward()

    It may be used again in each step, by several threads, and in a `with` in a `with`, where the innermost one counts.

    pool: spillway.torch.connect(), or Session.pool(). min_bytes: smaller tensors stay in memory. So do parameters and
    other leaves that require a gradient, views of them, tensors that are not dense, or neither on the CPU nor on a GPU
    that has a way to the pool: half of the pool's memory is mapped for it at most, and stays reserved.
    in_flight_bytes: on the CPU, how much may wait for its copy at a time, held until it is made: when the model saves
    faster than the pool takes, the rest stays in memory, for to wait for the pool twice would cost more than the memory
    is worth. On a GPU all may wait, and by how much the host may be ahead of the GPU, by two storages at least; with
    "keep", what is saved while the host is not ahead at all stays in memory, and if that was more than could be stored,
    for some steps all does but the largest. What is last saved is needed first: it is still in flight then, and used as
    it is. prefetch_bytes: how far ahead of the backward pass is read; to it comes half of what that has given back of
    what had not been stored. on_full: what happens where the pool has no room: "keep": it stays in memory; "wait": the
    forward pass waits for room, and for its turn where more than in_flight_bytes have been computed and wait; "raise":
    NoSpace.
    timeout: for how many seconds a copy waits for room; None: 1, with "wait" as long as the daemon lets it (60 s).

    A tensor that is changed in place after it was saved is autograd's RuntimeError when backward needs it, as without
    this context. (What autograd does not see, as changes of Tensor.data, backward may see or not.)

    Errors of the pool but "no room" are raised by the next operation that saves or needs a tensor, or at the end of the
    `with`; torch 1.13 has a RuntimeError with their text from within an operation.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        min_bytes: int = 1 << 20,
        on_full: str = "keep",
        in_flight_bytes: int = 256 << 20,
        prefetch_bytes: int = 256 << 20,
        timeout: Optional[float] = None,
    ) -> None:
        self._offloader = _Offloader(pool, min_bytes, on_full, in_flight_bytes, prefetch_bytes, timeout)
        super().__init__(self._offloader.pack, self._offloader.unpack)

    @property
    def stats(self) -> ActivationStats:
        """What it did so far."""
        return self._offloader.stats

    def __enter__(self) -> "offload_activations":
        self._offloader.begin()
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        value = args[1] if args else None
        failure = self._offloader.failure()
        if failure is not None and (value is None or str(failure) in str(value)):
            raise failure from value
