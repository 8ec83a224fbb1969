# SPDX-License-Identifier: Apache-2.0
"""Between parameters on GPUs and the CPU that steps them, group by group.

    current stream   backward ┐                                          ┌ forward
    stream "over"             └ gradients 0 │ gradients 1 │ gradients 2  │
    step()                                  │ step 0      │ step 1 …     │
    stream "back"                                         │ parameters 0 │ …

Copies are begun by threads beside the one that steps, which only waits for gradients: adamw.py.

Gradients come over into pinned memory of two groups. Parameters go back from where the step has left them: fp32 from
the masters in leased memory, which this process registers with the driver as well (Gpu.map(); what cannot be is copied
all the same, slower), bf16 from pinned memory of two groups. So group i + 1 comes over and group i - 1 goes back while
group i is stepped, and a group's lease ends when its parameters are there.
"""
from __future__ import annotations

import warnings
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, cast

import torch

from .. import gpu
from ..errors import SpillwayError
from ..space import Space
from ..views import Views

BUFFERS = 2  # one is used by the step, the other by the link
ALIGN_BYTES = 64

# One call for a group's copies, if torch has it: each call gives up the interpreter's lock, and must have it back from
# threads that compute beside it.
_foreach_copy = getattr(torch, "_foreach_copy_", None)


class Run(NamedTuple):
    """Elements of a parameter that follow each other in a group: n, from `first` on. A group has one of a parameter."""

    param: torch.Tensor
    first: int
    n: int

    def elements(self, tensor: torch.Tensor) -> torch.Tensor:
        """Those of the parameter, or of its gradient."""
        return tensor.detach().view(-1)[self.first : self.first + self.n]


def is_remote(tensor: torch.Tensor) -> bool:
    """Is it on a GPU?"""
    return tensor.device.type == "cuda"


def region(tensor: torch.Tensor) -> gpu.Region:
    """A contiguous tensor on a GPU, for the calls of spillway.gpu. It is kept for as long as they use it."""
    if not is_remote(tensor) or not tensor.is_contiguous():
        raise ValueError("this takes contiguous tensors on a GPU")
    return gpu.Region(tensor.data_ptr(), tensor.numel() * tensor.element_size(), tensor)


def at(tensor: torch.Tensor, first: int) -> int:
    """The address of an element of a contiguous tensor."""
    return tensor.data_ptr() + first * tensor.element_size()


def attach(space: Space, device: torch.device, **options: Any) -> gpu.Gpu:
    """spillway.gpu.attach() for a device of torch's: a call that names no stream is of torch's current one there."""
    options.setdefault("current_stream", lambda: torch.cuda.current_stream(device).cuda_stream)
    with torch.cuda.device(device):
        torch.cuda.synchronize()  # from now on its context is the thread's
        return gpu.attach(space, **options)


def sum_squares(tensors: Sequence[torch.Tensor]) -> float:
    """Of all elements, computed where they are; infinity or NaN if one is not finite."""
    by_device: Dict[torch.device, List[torch.Tensor]] = {}
    for tensor in tensors:
        norm = torch.linalg.vector_norm(tensor, dtype=torch.float64)
        by_device.setdefault(tensor.device, []).append(norm)
    return sum(float(torch.stack(norms).square().sum()) for norms in by_device.values())


def copy_all(pairs: Sequence[Tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Begins to copy each second to its first, on the current stream."""
    if _foreach_copy is not None and pairs:
        _foreach_copy([to for to, _ in pairs], [source for _, source in pairs], non_blocking=True)
    else:
        for to, source in pairs:
            to.copy_(source, non_blocking=True)


class Copies:
    """A stream of a device, beside those that compute."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def begin(self) -> None:
        """What is copied from now on comes after what the current stream has."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def after(self, event: torch.cuda.Event) -> None:
        """What is copied from now on comes after this."""
        self._stream.wait_event(event)

    def copy(self, pairs: Iterable[Tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
        """Copies each second to its first; what is returned waits for that."""
        with torch.cuda.stream(self._stream):
            copy_all(list(pairs))
            event: torch.cuda.Event = self._stream.record_event(torch.cuda.Event(blocking=True))
            return cast(Callable[[], None], event.synchronize)

    def end(self) -> None:
        """What the current stream has from now on comes after what was copied."""
        torch.cuda.current_stream(self.device).wait_stream(self._stream)


class Pinned:
    """Memory that devices copy from and to; grows, and never shrinks."""

    def __init__(self) -> None:
        self._bytes = self._new(0)

    @staticmethod
    def _new(nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())

    def tensors(self, wanted: Sequence[Tuple[torch.dtype, int]]) -> List[torch.Tensor]:
        """Tensors of a type, and so many elements; those of the last call are overwritten."""
        at, places = 0, []
        for dtype, n in wanted:
            nbytes = n * torch.finfo(dtype).bits // 8
            places.append((at, nbytes))
            at += -(-nbytes // ALIGN_BYTES) * ALIGN_BYTES
        if at > self._bytes.numel():
            self._bytes = self._new(1 << (at - 1).bit_length())  # torch takes as much anyway
        return [self._bytes[at : at + nbytes].view(dtype) for (at, nbytes), (dtype, _) in zip(places, wanted)]


class Staged(NamedTuple):
    """A run in memory of the host. out: where the parameter is to be written; None: it is its master."""

    run: Run
    grad: torch.Tensor
    out: Optional[torch.Tensor]

    def addresses(self, first: int) -> Tuple[int, int]:
        """Of the gradient and of out, or 0, from this element of the parameter on."""
        ahead = first - self.run.first
        return at(self.grad, ahead), 0 if self.out is None else at(self.out, ahead)


# Of a group whose gradients are on their way: its runs by parameter, and what waits for all of them.
Coming = Tuple[Dict[torch.Tensor, Staged], Callable[[], None]]


class Link:
    """All that an optimizer's parameters on GPUs need; without such parameters it does nothing."""

    def __init__(self, space: Space, params: Iterable[torch.Tensor]) -> None:
        devices = sorted({p.device for p in params if is_remote(p)}, key=str)
        self._over = {device: Copies(device) for device in devices}
        self._back = {device: Copies(device) for device in devices}
        self._grads = [Pinned() for _ in range(BUFFERS)]
        self._outs = [Pinned() for _ in range(BUFFERS)]
        self._gpu: Optional[gpu.Gpu] = None
        if devices:
            self._attach(space, devices[0])

    @property
    def used(self) -> bool:
        """Is there a parameter on a GPU?"""
        return bool(self._over)

    def _attach(self, space: Space, device: torch.device) -> None:
        try:
            self._gpu = attach(space, device, map_only=True)
        except SpillwayError as error:
            self._not_mapped(error)

    def _not_mapped(self, error: SpillwayError) -> None:
        self._gpu = None
        warnings.warn(f"the pool's memory is not pinned here, so parameters are copied slowly: {error}", RuntimeWarning)

    def map(self, views: Views) -> None:
        """Copies of the views' bytes are to be fast. One registration serves all devices."""
        if self._gpu is None:
            return
        try:
            for view in views:
                self._gpu.map(view)
        except SpillwayError as error:
            self._not_mapped(error)

    # --- A step -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A step begins: what is copied comes after what the current streams have."""
        for copies in (*self._over.values(), *self._back.values()):
            copies.begin()

    def after(self, events: Iterable[torch.cuda.Event]) -> None:
        """What comes over from now on comes after these."""
        for event in events:
            for copies in self._over.values():
                copies.after(event)

    def gradients(self, group: int, runs: Sequence[Run], grads: Dict[torch.Tensor, torch.Tensor]) -> Coming:
        """The gradients of a group's runs begin to come over: where the ones of two groups before were."""
        runs = [run for run in runs if run.param in grads and is_remote(run.param)]
        sources = [run.elements(grads[run.param]) for run in runs]
        places = self._grads[group % BUFFERS].tensors([(source.dtype, source.numel()) for source in sources])
        outs = self._outs_of(group, runs)
        staged = {run.param: Staged(run, here, out) for run, here, out in zip(runs, places, outs)}
        return staged, self._copy(self._over, ((grad.device, to, grad) for to, grad in zip(places, sources)))

    def _outs_of(self, group: int, runs: Sequence[Run]) -> List[Optional[torch.Tensor]]:
        written = [(p.dtype, n) for p, _, n in runs if p.dtype != torch.float32]
        outs = iter(self._outs[group % BUFFERS].tensors(written))
        return [next(outs) if run.param.dtype != torch.float32 else None for run in runs]

    def reserve(self, groups: Iterable[Sequence[Run]]) -> None:
        """Pins what the groups need now, if gradients are of their parameters' types, and not in the first step."""
        for runs in groups:
            remote = [run for run in runs if is_remote(run.param)]
            for number in range(BUFFERS):
                self._grads[number].tensors([(p.dtype, n) for p, _, n in remote])
                self._outs_of(number, remote)

    def parameters(self, changed: Iterable[Tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
        """Begins to copy to each first, of a GPU's memory, its second; what is returned waits for that."""
        return self._copy(self._back, ((to.device, to, source) for to, source in changed))

    def end(self) -> None:
        """The current streams wait for the parameters."""
        for copies in self._back.values():
            copies.end()

    @staticmethod
    def _copy(
        streams: Dict[torch.device, Copies], copies: Iterable[Tuple[torch.device, torch.Tensor, torch.Tensor]]
    ) -> Callable[[], None]:
        by_device: Dict[torch.device, List[Tuple[torch.Tensor, torch.Tensor]]] = {}
        for device, to, source in copies:
            by_device.setdefault(device, []).append((to, source))
        waits = [streams[device].copy(pairs) for device, pairs in by_device.items()]

        def wait() -> None:
            for each in waits:
                each()

        return wait

    def close(self) -> None:
        """Lets go of the pool's memory."""
        attached, self._gpu = self._gpu, None
        if attached is not None:
            attached.close()
