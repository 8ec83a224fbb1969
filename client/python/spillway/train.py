# SPDX-License-Identifier: Apache-2.0
"""What a training job computes on its optimizer states, where they lie: <spillway/train.h>.

No session is needed. Memory is named by its address: of a lease (View.address), a NumPy array, a torch tensor; it is
the caller's, who sees to it that it is there until the call returns. Calls run without the GIL.
"""
from __future__ import annotations

import math
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

from ._native import ffi, lib
from .errors import last_error
from .views import Unpicklable

BLOCK = int(lib.SPW_TRAIN_BLOCK)
DTYPES = {"float32": (lib.SPW_DTYPE_F32, 4), "bfloat16": (lib.SPW_DTYPE_BF16, 2)}


class GradStat(NamedTuple):
    """Of gradients as they lie in memory. sum_squares: of the finite ones, the square of their 2-norm; infinity if
    there are others. nonfinite: one is infinite, or not a number."""

    sum_squares: float
    nonfinite: bool

    @property
    def norm(self) -> float:
        """The 2-norm."""
        return math.sqrt(self.sum_squares)


class Adam(NamedTuple):
    """A step's numbers: struct spw_adam_options. step: of these parameters, the first being 1. l2: weight decay is
    added to the gradient (Adam), not taken off the parameter (AdamW)."""

    lr: float
    betas: Tuple[float, float]
    eps: float
    weight_decay: float
    step: int
    grad_scale: float = 1.0
    l2: bool = False


class Slice(NamedTuple):
    """A tensor or a part of one: n elements at each address; struct spw_adam_slice. 0: there is none (grad, master, m
    and v are needed for a step, grad alone for grad_stat())."""

    n: int
    grad: int
    master: int
    m: int
    v: int
    param: int = 0
    grad_dtype: str = "float32"
    param_dtype: str = "float32"


class Workers(Unpicklable):
    """Threads that compute beside the caller. n: counts the caller; 0: as many as it has CPUs. A context manager."""

    def __init__(self, n: int = 0) -> None:
        out = ffi.new("spw_workers **")
        status = lib.spw_workers_new(n, out)
        if status < 0:
            raise last_error(status)
        self._handle: Any = ffi.gc(out[0], lib.spw_workers_free)

    @property
    def count(self) -> int:
        """With the caller."""
        return int(lib.spw_workers_count(self._handle))

    def close(self) -> None:
        """Ends them. No call uses them any more."""
        handle, self._handle = self._handle, None
        if handle is not None:
            ffi.release(handle)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _handle(workers: Optional[Workers]) -> Any:
    if workers is None:
        return ffi.NULL
    if workers._handle is None:
        raise ValueError("the workers were closed")
    return workers._handle


def packed(slices: Sequence[Slice]) -> Any:
    """Slices as the library takes them, for grad_stat() and adam(): made beforehand, they cost the call no time."""
    if isinstance(slices, ffi.CData):
        return slices
    array = ffi.new("struct spw_adam_slice[]", len(slices))
    for c, s in zip(array, slices):
        c.n = s.n
        c.grad = ffi.cast("void *", s.grad)
        c.master = ffi.cast("float *", s.master)
        c.m = ffi.cast("float *", s.m)
        c.v = ffi.cast("float *", s.v)
        c.param = ffi.cast("void *", s.param)
        c.grad_dtype = DTYPES[s.grad_dtype][0]
        c.param_dtype = DTYPES[s.param_dtype][0]
    return array


def copy(copies: Sequence[Tuple[int, int, int]], workers: Optional[Workers] = None) -> None:
    """To an address, from an address, so many bytes, of each: by as many threads as there is work for. What is written
    overlaps nothing else."""
    array = ffi.new("struct spw_copy[]", len(copies))
    for c, (to, source, nbytes) in zip(array, copies):
        c.to, c.size_bytes = ffi.cast("void *", to), nbytes
        setattr(c, "from", ffi.cast("void *", source))
    status = lib.spw_copy(_handle(workers), array, len(copies))
    if status < 0:
        raise last_error(status)


def grad_stat(slices: Sequence[Slice], workers: Optional[Workers] = None) -> GradStat:
    """One pass that only reads the gradients, and allocates nothing that grows with them."""
    stat = ffi.new("struct spw_grad_stat *")
    status = lib.spw_grad_stat(_handle(workers), packed(slices), len(slices), stat)
    if status < 0:
        raise last_error(status)
    return GradStat(stat.sum_squares, bool(stat.has_nonfinite))


def adam(options: Adam, slices: Sequence[Slice], workers: Optional[Workers] = None) -> GradStat:
    """A step of AdamW (or Adam) in one pass over memory. SpillwayError with EINVAL says which argument is wrong;
    nothing was written then."""
    c = ffi.new("struct spw_adam_options *")
    c.lr, (c.beta1, c.beta2), c.eps, c.weight_decay = options.lr, options.betas, options.eps, options.weight_decay
    c.grad_scale, c.step = options.grad_scale, options.step
    c.flags = lib.SPW_ADAM_L2 if options.l2 else 0
    stat = ffi.new("struct spw_grad_stat *")
    status = lib.spw_adam(_handle(workers), c, packed(slices), len(slices), stat)
    if status < 0:
        raise last_error(status)
    return GradStat(stat.sum_squares, bool(stat.has_nonfinite))


# --- Where states lie -----------------------------------------------------------------------------------------------


class Extent(NamedTuple):
    """A run of a tensor's elements in one chunk. first: its first element; at: where that is in the chunk's arrays."""

    tensor: int
    first: int
    n: int
    at: int


class Layout:
    """How the states of tensors lie in chunks of one piece each: arrays of fp32, one behind the other, each of
    `elements` (of the last chunk: what is left, in whole blocks).

    sizes: elements of each tensor. arrays: how many a chunk has (2: m, v; 3: the masters too). Each tensor begins at a
    multiple of BLOCK elements, and so is cut at such: the bits of a step do not depend on the size of chunks. That
    wastes less than BLOCK elements a tensor.
    """

    def __init__(self, sizes: Sequence[int], arrays: int, chunk_bytes: int) -> None:
        self.arrays = arrays
        self.elements = chunk_bytes // (4 * arrays) // BLOCK * BLOCK
        if self.elements == 0:
            raise ValueError(f"a chunk of {chunk_bytes} bytes is less than {4 * arrays * BLOCK}")
        self.chunks: List[List[Extent]] = []
        at = 0
        for tensor, size in enumerate(sizes):
            first = 0
            while first < size:
                chunk, offset = divmod(at, self.elements)
                n = min(size - first, self.elements - offset)
                while len(self.chunks) <= chunk:
                    self.chunks.append([])
                self.chunks[chunk].append(Extent(tensor, first, n, offset))
                first += n
                at += n
            at = -(-at // BLOCK) * BLOCK
        self._total = at

    def chunk_elements(self, chunk: int) -> int:
        """Of each array of this chunk."""
        return min(self.elements, self._total - chunk * self.elements)

    def chunk_bytes(self, chunk: int) -> int:
        """The chunk's size."""
        return 4 * self.arrays * self.chunk_elements(chunk)

    @property
    def nbytes(self) -> int:
        """Of all chunks."""
        return 4 * self.arrays * self._total

    def address(self, base: int, chunk: int, array: int, extent: Extent) -> int:
        """Of an extent in one of the arrays of a chunk that begins at `base`."""
        return base + 4 * (array * self.chunk_elements(chunk) + extent.at)
