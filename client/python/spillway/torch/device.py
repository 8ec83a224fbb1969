# SPDX-License-Identifier: Apache-2.0
"""Between parameters on GPUs and the CPU that steps them, group by group.

    current stream   backward ┐                                          ┌ forward
    stream "over"             └ gradients 0 │ gradients 1 │ gradients 2  │
    step()                                  │ step 0      │ step 1 …     │
    stream "back"                                         │ parameters 0 │ …

Gradients come over into pinned memory of two groups. Parameters go back from where the step has left them: fp32 from
the masters in leased memory, which this process registers with the driver as well (Gpu.map(); what cannot be is copied
all the same, slower), bf16 from pinned memory of two groups. So group i + 1 comes over and group i - 1 goes back while
group i is stepped, and a group's lease ends when its parameters are there.
"""
from __future__ import annotations

import warnings
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import torch

from .. import gpu, train
from ..errors import SpillwayError
from ..space import Space
from ..views import Views

BUFFERS = 2  # one is used by the step, the other by the link
ALIGN_BYTES = 64

# A run of a parameter: the parameter, and its extent.
Run = Tuple[torch.Tensor, train.Extent]


def is_remote(tensor: torch.Tensor) -> bool:
    """Is it on a GPU?"""
    return tensor.device.type == "cuda"


def region(tensor: torch.Tensor) -> gpu.Region:
    """A contiguous tensor on a GPU, for the calls of spillway.gpu. It is kept for as long as they use it."""
    if not is_remote(tensor) or not tensor.is_contiguous():
        raise ValueError("this takes contiguous tensors on a GPU")
    return gpu.Region(tensor.data_ptr(), tensor.numel() * tensor.element_size(), tensor)


def attach(space: Space, device: torch.device, **options: Any) -> gpu.Gpu:
    """spillway.gpu.attach() for a device of torch's."""
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


class Copies:
    """A stream of a device, beside those that compute."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def begin(self) -> None:
        """What is copied from now on comes after what the current stream has."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def copy(self, pairs: Iterable[Tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
        """Copies each second to its first; what is returned waits for that."""
        with torch.cuda.stream(self._stream):
            for to, source in pairs:
                to.copy_(source, non_blocking=True)
            return self._stream.record_event().synchronize

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
            self._bytes = self._new(at)
        return [self._bytes[at : at + nbytes].view(dtype) for (at, nbytes), (dtype, _) in zip(places, wanted)]


class Staged(NamedTuple):
    """A run in memory of the host. out: where the parameter is to be written; None: it is its master."""

    grad: torch.Tensor
    out: Optional[torch.Tensor]


# Of a group whose gradients are on their way: its runs by parameter and first element, and who waits for them.
_Coming = Tuple[Dict[Tuple[torch.Tensor, int], Staged], List[Callable[[], None]]]


class Link:
    """All that an optimizer's parameters on GPUs need; without such parameters it does nothing."""

    def __init__(self, space: Space, params: Iterable[torch.Tensor]) -> None:
        devices = sorted({p.device for p in params if is_remote(p)}, key=str)
        self._over = {device: Copies(device) for device in devices}
        self._back = {device: Copies(device) for device in devices}
        self._grads = [Pinned() for _ in range(BUFFERS)]
        self._outs = [Pinned() for _ in range(BUFFERS)]
        self._gpu: Optional[gpu.Gpu] = None
        self._groups: List[List[Run]] = []
        self._grad_of: Dict[torch.Tensor, torch.Tensor] = {}
        self._coming: Dict[int, _Coming] = {}
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

    def begin(self, grads: Dict[torch.Tensor, torch.Tensor], groups: List[List[Run]]) -> None:
        """A step begins: of these gradients, those on GPUs come over in the order of the groups' runs."""
        self._grad_of = grads
        self._groups = [[run for run in runs if run[0] in grads and is_remote(run[0])] for runs in groups]
        self._coming = {}
        for copies in (*self._over.values(), *self._back.values()):
            copies.begin()

    def gradients(self, group: int) -> Dict[Tuple[torch.Tensor, int], Staged]:
        """Of the group's runs, by parameter and first element. The next group begins to come over."""
        for i in range(group, min(group + BUFFERS, len(self._groups))):
            if i not in self._coming:
                self._coming[i] = self._bring(i)
        staged, waits = self._coming.pop(group, ({}, []))
        for wait in waits:
            wait()
        return staged

    def _bring(self, group: int) -> _Coming:
        runs = self._groups[group]
        grads = [self._grad_of[p].view(-1)[e.first : e.first + e.n] for p, e in runs]
        places = self._grads[group % BUFFERS].tensors([(grad.dtype, grad.numel()) for grad in grads])
        written = [(p, e) for p, e in runs if p.dtype != torch.float32]
        outs = self._outs[group % BUFFERS].tensors([(p.dtype, e.n) for p, e in written])
        out_of = {(p, e.first): out for (p, e), out in zip(written, outs)}
        staged = {(p, e.first): Staged(to, out_of.get((p, e.first))) for (p, e), to in zip(runs, places)}
        return staged, self._copy(self._over, ((grad.device, to, grad) for to, grad in zip(places, grads)))

    def parameters(self, changed: Iterable[Tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
        """Begins to copy to each first, of a GPU's memory, its second; what is returned waits for that."""
        waits = self._copy(self._back, ((to.device, to, source) for to, source in changed))

        def wait() -> None:
            for each in waits:
                each()

        return wait

    def end(self) -> None:
        """The current streams wait for the parameters."""
        for copies in self._back.values():
            copies.end()

    @staticmethod
    def _copy(
        streams: Dict[torch.device, Copies], copies: Iterable[Tuple[torch.device, torch.Tensor, torch.Tensor]]
    ) -> List[Callable[[], None]]:
        by_device: Dict[torch.device, List[Tuple[torch.Tensor, torch.Tensor]]] = {}
        for device, to, source in copies:
            by_device.setdefault(device, []).append((to, source))
        return [streams[device].copy(pairs) for device, pairs in by_device.items()]

    def close(self) -> None:
        """Lets go of the pool's memory."""
        attached, self._gpu = self._gpu, None
        if attached is not None:
            attached.close()
