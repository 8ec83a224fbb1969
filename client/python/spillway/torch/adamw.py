# SPDX-License-Identifier: Apache-2.0
"""AdamW whose states are the daemon's: group after group they are leased, stepped on the CPU, and given back.

    thread "reader"   lease i+1 │ lease i+2 │ …        what is on a device is read meanwhile
    step()                      │ step i+1  │ step i+2
    daemon                      │           │ write i …  when it needs the room, ahead of need

Where parameters are on a GPU (device.py), the reader also has their gradients come over, and a second thread, "writer",
copies them back and ends the lease. So step() does nothing but the arithmetic; all else is beside it.

A chunk is one tensor of the store: m and v, and the fp32 masters of parameters that are not fp32 on the CPU, of so many
elements as fit in a piece. A group is some chunks: what is leased at once. Two groups are leased at a time at most, or
three if a GPU copies from them; that, and not the states, is what must fit in the pool's memory. The order is the same
in each step, and is declared beforehand, so a pool with the policy "plan" for the class optimizer keeps as much of it
in memory as can be kept, from the first step on.
"""
from __future__ import annotations

import errno
import hashlib
import math
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import torch

from .. import train
from .._native import ffi
from ..errors import Busy, Disconnected, NoSpace, SpillwayError
from ..session import ManifestEntry, Pool
from ..views import Views
from . import timeline
from .device import Link, Run, Staged, at, is_remote, sum_squares
from .manifest import without_names
from .memory import floats as _floats
from .overlap import Gradients, Overlap, changes
from .ranks import Ranks
from .saver import Saver
from .saving import Saving, mib
from .snapshot import load
from .tiers import Tier, check_room

GROUP_BYTES = 64 << 20
GPU_GROUP_BYTES = 256 << 20  # so that beginning copies takes less time than the arithmetic
LEASED_GROUPS = 2  # one is stepped, one is read; with parameters on a GPU, of another one these go back
_IN_USE = (1 << 32) - 1  # beside the chunks' numbers: what is reserved while the name is in use

_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class _Lane(NamedTuple):
    """Parameters, or a rank's ranges of them, whose chunks have the same arrays. masters: the first array has them."""

    params: List[torch.Tensor]
    starts: List[int]  # of each: which element its range begins with
    layout: train.Layout
    masters: bool
    number: int

    def whole(self, extent: train.Extent) -> train.Extent:
        """One of the layout's, in the elements of the whole parameter."""
        return extent._replace(first=self.starts[extent.tensor] + extent.first)


class _Group(NamedTuple):
    """Chunks that are leased together."""

    lane: _Lane
    first: int
    n: int
    number: int
    runs: List[Run]

    @property
    def nbytes(self) -> int:
        """Of all its chunks."""
        return sum(map(self.lane.layout.chunk_bytes, range(self.first, self.first + self.n)))


# What goes back to a GPU, and from where: another tensor, or one over leased memory.
_Written = Tuple[torch.Tensor, torch.Tensor]


class _Taken(NamedTuple):
    """A group that is leased. arrive: waits for its gradients; work: its step, as train.adam() takes it."""

    views: Views
    arrive: Callable[[], None]
    work: List[Tuple[train.Adam, Any]]
    written: List[_Written]


class _Plan(NamedTuple):
    """A group's step as it was made last: thousands of objects, which the next one finds where all lies where it did.

    of: what it depends on: addresses, and which parameters have the same numbers. slices: as train.adam() takes them,
    with a parameter whose numbers are theirs. written: over leased memory too, so it is for who has the lease alone.
    """

    of: Tuple[Any, ...]
    slices: List[Tuple[torch.Tensor, Any]]
    written: List[_Written]


# A parameter, a run of its elements in a chunk, and a function that tells their address in one of the chunk's arrays.
_Extent = Tuple[torch.Tensor, train.Extent, Callable[[int], int]]
# What a group is taken by, in the reader, and used by. The latter returns what is left for the writer to do, or None.
_Take = Callable[[_Group], _Taken]
_Use = Callable[[_Group, _Taken], Optional[Callable[[], None]]]


class OffloadAdamW(torch.optim.Optimizer):
    """torch.optim.AdamW with its states in a pool of spillwayd's.

    params, lr, betas, eps, weight_decay: as AdamW's; parameters are dense, fp32 or bf16. They may be on any device; off
    the CPU, and in bf16, a parameter has an fp32 master among the states, and is written from it.
    Gradients on a GPU come over group by group, after what the current stream had at the call of step(); what comes
    into that stream later waits for the new parameters.
    pool: where the states are kept (spillway.torch.connect(), or Session.pool()). tier: where in it. "auto": in its
    memory as far as that reaches, the rest on its devices; "dram": all of them in its memory; "nvme": on its devices,
    each group leaves memory when it was stepped, so that what is there is the groups of a step, and what the daemon
    reads ahead (`prefetch_ahead` of the pool). name: tells optimizers in one pool apart; Busy: one of that name is in
    use. group_bytes: how much is leased at once, twice; None: 64 MiB, with parameters on a GPU 256 MiB, less if the
    pool is small. max_grad_norm: gradients are scaled so that the 2-norm of all of them is at most this.
    skip_nonfinite: a step with a gradient that is not finite changes nothing, and is counted in `skipped`. Either reads
    all gradients once before the step. threads: that compute; 0: one for each CPU, with parameters on a GPU two less.

    ValueError from step(): with max_grad_norm alone, a gradient is not finite; nothing has been done then.
    NoSpace: the pool is too small for two groups, or for the states, or its memory for those of the tier "dram"; it
    says how much is needed. SpillwayError with ENODEV: the tier is "nvme", and the pool has no device. What a
    constructor that fails has made is gone, and the name is free. step() raises what the store says: then some groups
    have made the step and others have not, and `step()` must not be called again without load() or load_state_dict().

    params may be named_parameters(): then snapshots know parameters by these names, else by their numbers.
    process_group: of torch.distributed (torch.distributed.group.WORLD is the default one): its ranks share the states,
    each keeps and steps a part, and has all parameters when step() returns. All ranks must have the same gradients, as
    DDP makes them, and one pool. rank, world_size: the same without a group: then the caller exchanges the parameters
    (`ranks.segments()` says which are whose), and nothing can be saved.
    """

    def __init__(
        self,
        params: Any,
        pool: Pool,
        lr: float = 1e-3,
        betas: Tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        tier: Tier = "auto",
        name: str = "adamw",
        group_bytes: Optional[int] = None,
        max_grad_norm: Optional[float] = None,
        skip_nonfinite: bool = False,
        threads: int = 0,
        rank: Optional[int] = None,
        world_size: Optional[int] = None,
        process_group: Any = None,
    ) -> None:
        params, self._names = without_names(params)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.pool = pool
        self.tier = tier
        self.name = name
        self.ranks = Ranks(rank, world_size, process_group)
        self.max_grad_norm = max_grad_norm
        self.skip_nonfinite = skip_nonfinite
        self.skipped = 0
        self._steps: Dict[torch.Tensor, int] = {}
        self._broken = False
        self._plans: Dict[int, _Plan] = {}
        self._declared: Optional[bool] = None
        self._overlap: Optional[Overlap] = None
        layout = {"what": "spillway.torch.OffloadAdamW", "version": 1, "name": name}
        if self.ranks.world_size > 1:  # a space each, since a plan is a space's, and ranks are in no order
            layout["rank"], layout["world_size"] = self.ranks.rank, self.ranks.world_size
        self._space = pool.space(layout, class_="optimizer", durability="scratch")
        part = f" {self.ranks.rank} of {self.ranks.world_size}" if self.ranks.world_size > 1 else ""
        self._name = hashlib.sha256((name + part).encode()).digest()[:16]
        self._groups: List[_Group] = []
        with ExitStack() as made:
            self._make(made, group_bytes, threads)
            self._made = made.pop_all()

    def _make(self, made: ExitStack, group_bytes: Optional[int], threads: int) -> None:
        """All that close() takes back, the last first; so does a constructor that fails."""
        self._lanes = self._lanes_of(self._params())
        check_room(self.tier, self.pool, self.state_bytes * self.ranks.world_size)
        self._link = Link(self._space, self._params())
        made.callback(self._link.close)
        self._leasable = self.pool.manifest([]).leasable_bytes
        self._groups = self._groups_of(self._lanes, group_bytes)
        self._claim_name(made)
        made.callback(self._delete_states)
        self._workers = train.Workers(threads or (_cpus_beside_the_link() if self._link.used else 0))
        made.callback(self._workers.close)
        self._writer = ThreadPoolExecutor(1, "spillway-writer")
        made.callback(self._writer.shutdown)
        self._reader = ThreadPoolExecutor(1, "spillway-reader")
        made.callback(self._reader.shutdown)
        self._link.reserve(group.runs for group in self._groups)
        self.ranks.meet(self._params())
        self._saver = Saver(self)
        made.callback(self._saver.close)
        self._create()

    def add_param_group(self, param_group: Dict[str, Any]) -> None:
        """Only from the constructor: where states lie is decided there."""
        if hasattr(self, "_made"):
            raise RuntimeError("OffloadAdamW takes all its parameters at once")
        super().add_param_group(param_group)

    def _params(self) -> List[torch.Tensor]:
        return [p for settings in self.param_groups for p in settings["params"]]

    # --- Where states lie -------------------------------------------------------------------------------------------

    def _lanes_of(self, params: List[torch.Tensor]) -> List[_Lane]:
        for p in params:
            if p.dtype not in _NAMES or p.is_sparse:
                raise ValueError(f"parameters are dense, of torch.float32 or torch.bfloat16; not {p.dtype}")
            if not p.is_contiguous():
                raise ValueError("a parameter is not contiguous")
        lanes: List[_Lane] = []
        for masters in (False, True):
            chosen = [s for s in self.ranks.segments(params) if _has_master(params[s.parameter]) == masters]
            layout = train.Layout([s.n for s in chosen], 3 if masters else 2, self._space.piece_bytes)
            mine, starts = [params[s.parameter] for s in chosen], [s.first for s in chosen]
            lanes.append(_Lane(mine, starts, layout, masters, len(lanes)))
        return lanes

    def _groups_of(self, lanes: List[_Lane], group_bytes: Optional[int]) -> List[_Group]:
        piece = max((lane.layout.chunk_bytes(0) for lane in lanes if lane.layout.chunks), default=0)
        wanted = max(self._usual_bytes() if group_bytes is None else group_bytes, piece)
        if piece:
            self._check_groups(wanted // piece, piece)
        groups: List[_Group] = []
        for lane in lanes:
            n = len(lane.layout.chunks)
            step = max(wanted // lane.layout.chunk_bytes(0), 1) if n else 1
            for first in range(0, n, step):
                chunks = lane.layout.chunks[first : first + step]
                groups.append(_Group(lane, first, len(chunks), len(groups), _runs_of(lane, chunks)))
        return groups

    @property
    def _groups_at_once(self) -> int:
        """Leased by all ranks together."""
        return (LEASED_GROUPS + self._link.used) * self.ranks.world_size

    def _usual_bytes(self) -> int:
        return min(GPU_GROUP_BYTES if self._link.used else GROUP_BYTES, self._leasable // self._groups_at_once // 2)

    def _check_groups(self, chunks: int, piece: int) -> None:
        """Raises if the pool cannot have all groups that are leased at once, of so many chunks of this size each."""
        at_once = self._groups_at_once
        sizing = self.pool.manifest([ManifestEntry(piece, slots=chunks * at_once, write=True)])
        if sizing.limit is None:
            return
        knob = f"raise `dram` of [pool {self.pool.name}]"
        if sizing.limit.name not in ("POOL_LEASES", "POOL_DRAM"):
            knob = sizing.limit.text
        raise NoSpace(
            errno.ENOSPC,
            f"{at_once} groups of {mib(chunks * piece)} MiB are leased at once, which takes {mib(sizing.memory_bytes)} "
            f"MiB of pool {self.pool.name!r}'s memory, and it has {sizing.memory_max_bytes >> 20} MiB: {knob}, or "
            f"lower group_bytes (at least {mib(piece)} MiB)",
            sizing.limit,
        )

    def _has_room_for(self, nbytes: int) -> bool:
        """Are all states in memory, and can so much be leased beside the groups of a step?"""
        if self.tier == "nvme":
            return False
        sizes = [group.nbytes for group in self._groups]
        needed = max((LEASED_GROUPS + self._link.used) * max(sizes, default=0) + nbytes, self.state_bytes)
        return needed * self.ranks.world_size <= self._leasable

    def _keys(self, group: _Group) -> List[Tuple[bytes, int]]:
        return [self._key(group.lane.number, chunk) for chunk in range(group.first, group.first + group.n)]

    def _key(self, lane: int, chunk: int) -> Tuple[bytes, int]:
        return self._name, lane << 31 | chunk

    @property
    def state_bytes(self) -> int:
        """Of all states, in the store."""
        return sum(lane.layout.nbytes for lane in self._lanes)

    def _claim_name(self, made: ExitStack) -> None:
        in_use = self._space.reserve([(self._name, _IN_USE)], [1])
        if in_use[0].status == -errno.EINPROGRESS:
            raise Busy(
                errno.EBUSY,
                f"pool {self.pool.name!r} has an optimizer named {self.name!r} in use: give this one another `name`",
            )
        in_use.check()
        made.callback(_unless_gone, in_use.abort)

    def _delete_states(self) -> None:
        groups, self._groups = self._groups, []
        for group in groups:
            _unless_gone(self._space.delete, self._keys(group))

    def _create(self) -> None:
        for group in self._groups:
            keys = self._keys(group)
            # Of a job that ended, since the name was not in use: they would go when its owner does.
            self._space.delete(keys).check(errno.ENOENT)
            for chunk, key in enumerate(keys, group.first):
                self._space.tensor(key, group.lane.layout.chunk_bytes(chunk))

        self._declare(backwards=False)

        def begin(group: _Group, taken: _Taken) -> None:
            for view in taken.views:
                _bytes(view).zero_()
            if group.lane.masters:
                for p, extent, address in self._extents(group, taken.views):
                    _floats(address(0), extent.n).copy_(Run(p, extent.first, extent.n).elements(p))

        self._each_group(begin)

    def _declare(self, backwards: bool) -> None:
        """Tells the daemon in which order chunks are asked for in each step, unless it knows."""
        if self._declared == backwards:
            return
        groups = self._groups[::-1] if backwards else self._groups
        try:
            self._space.plan(key for group in groups for key in self._keys(group))
        except SpillwayError as error:
            if error.errno not in (errno.E2BIG, errno.ENOSPC, errno.ESTALE):
                raise  # else it is learned, if no other space has a plan
        self._declared = backwards

    # --- Groups -----------------------------------------------------------------------------------------------------

    def _lease(self, group: _Group, write: bool) -> Views:
        with timeline.span("read", group.number, group.nbytes):
            views = self._space.acquire(self._keys(group), write=write)
            try:
                views.check()
            except OSError:
                views.discard()
                raise
        if write:
            self._saver.fence(group, views)
        self._link.map(views)
        return views

    def _take(self, group: _Group, write: bool = True) -> _Taken:
        return _Taken(self._lease(group, write), lambda: None, [], [])

    def _each_group(
        self, use: _Use, take: Optional[_Take] = None, ahead: bool = True, groups: Optional[List[_Group]] = None
    ) -> None:
        """Calls use() for each group, in order, while the next one is being taken (ahead). What use() returns is called
        in the writer while the next one is used, and the lease ends then."""
        take = take or self._take
        groups = self._groups if groups is None else groups
        coming: Optional["Future[_Taken]"] = None
        going: Optional["Future[None]"] = None
        try:
            for i, group in enumerate(groups):
                began = time.perf_counter()
                with timeline.span("wait for read", group.number):
                    taken = coming.result() if coming else take(group)
                coming = None
                self._saver.waited(time.perf_counter() - began)
                with ExitStack() as stack:
                    stack.enter_context(self._leased(group, taken.views))
                    if ahead and i + 1 < len(groups):
                        coming = self._reader.submit(take, groups[i + 1])
                    rest = use(group, taken)
                    if going is not None:
                        with timeline.span("wait for parameters"):
                            going.result()
                        going = None
                    if rest is not None:
                        going = self._writer.submit(_finish, stack.pop_all(), rest)
            if going is not None:
                with timeline.span("wait for parameters"):
                    going.result()
        finally:
            if going is not None:
                going.exception()  # until then
            if coming is not None and not coming.cancel() and coming.exception() is None:
                coming.result().views.release(changed=False)

    @contextmanager
    def _leased(self, group: _Group, views: Views) -> Iterator[None]:
        with timeline.ending(views, "release", group.number, group.nbytes):
            yield
        self._left(self._keys(group))

    def _left(self, keys: List[Tuple[bytes, int]]) -> None:
        """Chunks that were leased, and are not any more."""
        if self.tier == "nvme":
            self._space.advise(keys, "not_again")

    def _extents(self, group: _Group, views: Views) -> Iterable[_Extent]:
        """Of each extent in the group: the parameter, it, and the address of it in array i."""
        layout = group.lane.layout
        for view, chunk in zip(views, range(group.first, group.first + group.n)):
            base = view.address
            for extent in layout.chunks[chunk]:

                def address(array: int, base: int = base, chunk: int = chunk, extent: train.Extent = extent) -> int:
                    return layout.address(base, chunk, array, extent)

                yield group.lane.params[extent.tensor], group.lane.whole(extent), address

    # --- The step ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    @timeline.spanned(timeline.WHOLE)
    def step(self, closure: Optional[Callable[[], Any]] = None) -> Any:
        """One step. Parameters without a gradient stay what they are. Returns what closure() returns, or None.

        After overlap_backward(): waits for the rest of the step that began there.
        """
        if self._overlap is not None:
            if closure is not None:
                raise ValueError("the step has begun in the backward pass: it takes no closure")
            self._finish_overlap()
            return None
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._whole()
        grads = self._gradients(self._params())
        if not grads:
            return loss
        with timeline.span("norm"):
            scale = self._scale(grads)
        if scale is None:
            self.skipped += 1
            return loss
        options = self._options(grads, scale)
        self._declare(backwards=False)
        self._broken = True
        self._link.begin()
        self._each_group(self._step_group, lambda group: self._take_step(group, grads, options))
        self._link.end()
        with timeline.span("exchange"):
            self.ranks.exchange(self._params())
        self._broken = False
        return loss

    def overlap_backward(self) -> Overlap:
        """For `with opt.overlap_backward(): loss.backward()`: groups are stepped while the backward pass goes on, each
        as soon as it has its gradients. step() must follow; it makes the rest of the step.

        From a parameter's gradient on, this backward pass must not need the parameter any more, as is so if it gets all
        of its gradient from where it is used; PyTorch says so if it is not. Gradients must be left as they are until
        step() returns. With gradients that are accumulated over several passes, this is for the last one. If the pass
        raises, the step may have been made in part: then step() raises until load() or load_state_dict().

        ValueError: max_grad_norm and skip_nonfinite need all gradients before; ranks exchange theirs first.
        """
        if self.max_grad_norm is not None or self.skip_nonfinite:
            raise ValueError("max_grad_norm and skip_nonfinite need all gradients before the first group is stepped")
        if self.ranks.world_size > 1:
            raise ValueError("gradients of several ranks are exchanged before a step")
        self._settled()
        self._whole()
        self._overlap = Overlap(self._params(), self._step_overlapped, self._backward_ended)
        return self._overlap

    def _settled(self) -> None:
        if self._overlap is not None:
            raise RuntimeError("a step that began in a backward pass has not ended: call step()")

    def _backward_ended(self, failed: bool) -> None:
        if failed:
            self._overlap = None
        else:
            self._link.begin()  # gradients of earlier passes, too

    def _step_overlapped(self, gradients: Gradients) -> None:
        grads: Dict[torch.Tensor, torch.Tensor] = {}
        options: Dict[torch.Tensor, train.Adam] = {}

        def take(group: _Group) -> _Taken:
            runs = {run.param for run in group.runs}
            with timeline.span("wait for backward", group.number):
                here = gradients.wait({p for p in runs if p.requires_grad})
            self._link.after(here)
            come = self._gradients(p for p in runs if p not in grads)
            grads.update(come)
            options.update(self._options(come, 1.0))
            return self._take_step(group, grads, options)

        def use(group: _Group, taken: _Taken) -> Optional[Callable[[], None]]:
            self._broken = True
            with torch.no_grad():
                for run in group.runs:
                    if run.param in grads and run.param.device.type == "cpu":
                        changes(run.param)
            return self._step_group(group, taken)

        self._declare(backwards=True)
        self._each_group(use, take, groups=self._groups[::-1])

    def _finish_overlap(self) -> None:
        assert self._overlap is not None
        try:
            with timeline.span("wait for overlap"):
                self._overlap.finish()
        finally:
            self._overlap = None
        self._link.end()
        self._broken = False

    def _options(self, grads: Iterable[torch.Tensor], scale: float) -> Dict[torch.Tensor, train.Adam]:
        """Their next step's numbers."""
        options = {}
        for settings in self.param_groups:
            for p in settings["params"]:
                if p in grads:
                    self._steps[p] = self._steps.get(p, 0) + 1
                    options[p] = train.Adam(
                        float(settings["lr"]),
                        (settings["betas"][0], settings["betas"][1]),
                        settings["eps"],
                        settings["weight_decay"],
                        self._steps[p],
                        scale,
                    )
        return options

    def _whole(self) -> None:
        if self._broken:
            raise RuntimeError("a step failed in its middle: call load() or load_state_dict() with states of before it")

    def _gradients(self, params: Iterable[torch.Tensor]) -> Dict[torch.Tensor, torch.Tensor]:
        """Of each parameter that has one, on the CPU or a GPU, contiguous."""
        grads = {}
        for p in params:
            if p.grad is None:
                continue
            if p.grad.is_sparse or p.grad.dtype not in _NAMES:
                raise ValueError("gradients are dense, of torch.float32 or torch.bfloat16")
            grad = p.grad.detach()
            grads[p] = (grad if is_remote(grad) else grad.to("cpu")).contiguous()
        return grads

    def _scale(self, grads: Dict[torch.Tensor, torch.Tensor]) -> Optional[float]:
        """By what gradients are multiplied; None: the step is left out."""
        if self.max_grad_norm is None and not self.skip_nonfinite:
            return 1.0
        here = [g for g in grads.values() if not is_remote(g)]
        slices = [train.Slice(g.numel(), g.data_ptr(), 0, 0, 0, grad_dtype=_NAMES[g.dtype]) for g in here]
        squares = train.grad_stat(slices, self._workers).sum_squares if slices else 0.0
        squares += sum_squares([g for g in grads.values() if is_remote(g)])
        finite = math.isfinite(squares)
        if not finite and self.skip_nonfinite:
            return None
        if self.max_grad_norm is None:
            return 1.0
        if not finite:
            raise ValueError("a gradient is not finite, nor is their norm: skip_nonfinite=True leaves such steps out")
        # as torch.nn.utils.clip_grad_norm_() has it
        return min(self.max_grad_norm / (math.sqrt(squares) + 1e-6), 1.0)

    def _take_step(
        self, group: _Group, grads: Dict[torch.Tensor, torch.Tensor], options: Dict[torch.Tensor, train.Adam]
    ) -> _Taken:
        """Takes a group for a step; its gradients are on their way from then on."""
        staged, arrive = self._link.gradients(group.number, group.runs, grads)
        if staged:
            nbytes = sum(there.run.n * there.grad.element_size() for there in staged.values())
            arrive = timeline.watched("gradients", arrive, group.number, nbytes)
        views = self._lease(group, write=True)
        plan = self._plan(group, views, staged, grads, options)
        return _Taken(views, arrive, [(options[p], slices) for p, slices in plan.slices], plan.written)

    def _plan(
        self,
        group: _Group,
        views: Views,
        staged: Dict[torch.Tensor, Staged],
        grads: Dict[torch.Tensor, torch.Tensor],
        options: Dict[torch.Tensor, train.Adam],
    ) -> _Plan:
        numbers: Dict[train.Adam, int] = {}
        of: List[Any] = [view.address for view in views]
        for run in group.runs:
            if run.param in grads:
                here = staged.get(run.param)
                grad, out = here.addresses(run.first) if here is not None else (grads[run.param].data_ptr(), 0)
                same = numbers.setdefault(options[run.param], len(numbers))
                of.append((run.param.data_ptr(), grad, out, grads[run.param].dtype, same))
            else:
                of.append(None)
        plan = self._plans.get(group.number)
        if plan is None or plan.of != tuple(of):
            plan = self._plans[group.number] = _Plan(tuple(of), *self._new_plan(group, views, staged, grads, options))
        return plan

    def _new_plan(
        self,
        group: _Group,
        views: Views,
        staged: Dict[torch.Tensor, Staged],
        grads: Dict[torch.Tensor, torch.Tensor],
        options: Dict[torch.Tensor, train.Adam],
    ) -> Tuple[List[Tuple[torch.Tensor, Any]], List[_Written]]:
        masters = int(group.lane.masters)
        slices: Dict[train.Adam, Tuple[torch.Tensor, List[train.Slice]]] = {}
        written = [(s.run.elements(s.run.param), s.out) for s in staged.values() if s.out is not None]
        for p, extent, address in self._extents(group, views):
            if p not in grads:
                continue
            there = staged.get(p)
            if there is not None:
                grad, out = there.addresses(extent.first)
                if there.out is None:
                    param = Run(p, extent.first, extent.n).elements(p)
                    written.append((param, _floats(address(0), extent.n)))
            else:
                grad = at(grads[p], extent.first)
                out = at(p, extent.first) if p.device.type == "cpu" else 0
            piece = train.Slice(
                extent.n,
                grad,
                address(0) if masters else out,
                address(masters),
                address(masters + 1),
                out if masters else 0,
                _NAMES[grads[p].dtype],
                _NAMES[p.dtype],
            )
            slices.setdefault(options[p], (p, []))[1].append(piece)
        return [(p, train.packed(of_p)) for p, of_p in slices.values()], written

    def _step_group(self, group: _Group, taken: _Taken) -> Optional[Callable[[], None]]:
        taken.arrive()
        with timeline.span("step", group.number, group.nbytes):
            for numbers, slices in taken.work:
                train.adam(numbers, slices, self._workers)
        return (lambda: self._copy_back(group, taken.written)) if taken.written else None

    def _copy_back(self, group: _Group, written: List[_Written]) -> None:
        nbytes = sum(to.numel() * to.element_size() for to, _ in written)
        with timeline.span("parameters", group.number, nbytes):
            self._link.parameters(written)()

    # --- Snapshots --------------------------------------------------------------------------------------------------

    def save(self, name: str, *, parameters: bool = True) -> None:
        """Saves states, step counts and the numbers of parameter groups as a snapshot. Durable when it returns.

        Of any interruption the old snapshot of that name is left, or this one, whole. parameters: those that have no
        master, too; without them load() leaves these as they are. All ranks call it, with the same name.

        NoSpace: the pool's devices have no room for it; SpillwayError with ENODEV: there is no device, with EPIPE:
        another rank failed. Then the old one is left, and the optimizer can go on.
        """
        self.snapshot(name, parameters=parameters).wait()

    def snapshot(self, name: str, *, parameters: bool = True) -> Saving:
        """As save(), but returns at once; what it returns tells when it is durable, and has the errors.

        Until then nothing but step() may change states and parameters: step() sees to it that what it changes was
        copied before. Where the states do not fit in the pool's memory the next step or Saving.wait() makes the copies.
        """
        self._settled()
        if self._broken:
            raise RuntimeError("a step failed in its middle: there is nothing whole to save")
        if self.ranks.world_size > 1 and self.ranks.group is None:
            raise ValueError("ranks need a process group to save together")
        return self._saver.begin(name, parameters)

    @torch.no_grad()
    def load(self, name: str, *, of: Optional[str] = None) -> None:
        """Takes states, parameters and numbers from a snapshot, whatever number of ranks saved it.

        of: the `name` of the optimizer that saved it; None: as this one's. Parameters are found by their names. All
        ranks call it. NotFound: there is none of that name, it says which there are; ValueError: it is of other
        parameters, shapes or types; nothing has been changed then.
        """
        self._settled()
        load(self, name, self.name if of is None else of)

    def _descriptions(self) -> List[Dict[str, Any]]:
        """Of each parameter, as a snapshot has it."""
        found: List[Dict[str, Any]] = []
        for number, settings in enumerate(self.param_groups):
            for p in settings["params"]:
                found.append(
                    {
                        "name": self._names[len(found)],
                        "shape": list(p.shape),
                        "dtype": _NAMES[p.dtype],
                        "group": number,
                        "step": self._steps.get(p, 0),
                    }
                )
        return found

    def _bare(self) -> Iterable[Tuple[torch.Tensor, int, int]]:
        """Of this rank's parameters without a master: it, the first of this rank's elements, and how many."""
        params = self._params()
        for s in self.ranks.segments(params):
            if not _has_master(params[s.parameter]):
                yield params[s.parameter], s.first, s.n

    # --- States -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> Dict[str, Any]:
        """A copy of the states in memory, in the form of torch.optim.AdamW's; with "master" where there is one."""
        if self.ranks.world_size > 1:
            raise RuntimeError("a rank has a part of the states alone: use save() and load()")
        self._settled()
        params = self._params()
        number = {p: i for i, p in enumerate(params)}
        state: Dict[int, Dict[str, torch.Tensor]] = {}
        for p in params:
            if p in self._steps:
                names = ("exp_avg", "exp_avg_sq") + (("master",) if _has_master(p) else ())
                state[number[p]] = {name: torch.empty(p.shape, dtype=torch.float32) for name in names}
                state[number[p]]["step"] = torch.tensor(float(self._steps[p]))

        def gather(group: _Group, taken: _Taken) -> None:
            for p, name, extent, here in self._named(group, taken.views):
                if p in self._steps:
                    state[number[p]][name].view(-1)[extent.first : extent.first + extent.n] = here

        self._each_group(gather, lambda group: self._take(group, write=False))
        return {**super().state_dict(), "state": state}  # numbers parameters as here

    @torch.no_grad()
    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Takes states as state_dict(), or torch.optim.AdamW's, has them. Parameters that it has nothing of begin anew,
        and masters that it has nothing of are made from the parameters."""
        self._settled()
        params = self._params()
        saved_groups = state_dict["param_groups"]
        if [len(g["params"]) for g in saved_groups] != [len(g["params"]) for g in self.param_groups]:
            raise ValueError("the states are of other parameter groups")
        ids = [i for g in saved_groups for i in g["params"]]
        states = {p: state_dict["state"][i] for p, i in zip(params, ids) if i in state_dict["state"]}
        for p, state in states.items():
            for name in ("exp_avg", "exp_avg_sq"):
                if tuple(state[name].shape) != tuple(p.shape):
                    raise ValueError(f"{name} has the shape {tuple(state[name].shape)}, its parameter {tuple(p.shape)}")
        for mine, saved in zip(self.param_groups, saved_groups):
            mine.update({k: saved[k] for k in ("lr", "betas", "eps", "weight_decay") if k in saved})
        self._steps = {p: int(state["step"]) for p, state in states.items()}

        def scatter(group: _Group, taken: _Taken) -> None:
            for p, name, extent, here in self._named(group, taken.views):
                saved = states.get(p, {}).get(name)
                if saved is None and name == "master":
                    saved = p.detach()
                if saved is None:
                    here.zero_()
                else:
                    here.copy_(saved.reshape(-1)[extent.first : extent.first + extent.n])

        self._each_group(scatter)
        self._broken = False

    def _named(self, group: _Group, views: Views) -> Iterable[Tuple[torch.Tensor, str, train.Extent, torch.Tensor]]:
        names = ("master", "exp_avg", "exp_avg_sq") if group.lane.masters else ("exp_avg", "exp_avg_sq")
        for p, extent, address in self._extents(group, views):
            for array, name in enumerate(names):
                yield p, name, extent, _floats(address(array), extent.n)

    def close(self) -> None:
        """Deletes the states, unless they went with the daemon. The pool's session stays open.

        Waits for snapshots that are being made."""
        if self._overlap is not None:
            self._overlap.end(failed=True)
        self._plans.clear()
        self._made.close()


def _unless_gone(function: Callable[..., Any], *arguments: Any) -> None:
    """Calls it; what the daemon had may have gone with it."""
    try:
        function(*arguments)
    except Disconnected:
        pass


def _cpus_beside_the_link() -> int:
    """For who computes: reader and writer have the others. Memory's bandwidth is used up with less than all of them."""
    return max(len(os.sched_getaffinity(0)) - 2, 1)


def _has_master(p: torch.Tensor) -> bool:
    return p.dtype != torch.float32 or p.device.type != "cpu"


def _runs_of(lane: _Lane, chunks: List[List[train.Extent]]) -> List[Run]:
    """Of each parameter in the chunks, which follow each other."""
    found: Dict[int, Run] = {}
    for extent in (lane.whole(extent) for extents in chunks for extent in extents):
        before = found.get(extent.tensor, Run(lane.params[extent.tensor], extent.first, 0))
        found[extent.tensor] = before._replace(n=before.n + extent.n)
    return list(found.values())


def _finish(lease: ExitStack, rest: Callable[[], None]) -> None:
    with lease:
        rest()


def _bytes(view: Any) -> torch.Tensor:
    """A tensor over a view's bytes, to be dropped before the lease ends."""
    return torch.frombuffer(ffi.buffer(ffi.cast("char *", view.address), view.size), dtype=torch.uint8)
