# SPDX-License-Identifier: Apache-2.0
"""Ranks that share an optimizer's states: each keeps and steps one part of them, and all have all parameters.

The parameters, one behind the other, each from a multiple of train.BLOCK elements on, are cut into as many contiguous
parts as there are ranks, at such multiples: no rank has much more than another, and the bits of a step are those of one
process. After the step each rank's part of the parameters is broadcast.
"""
from __future__ import annotations

import os
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import torch

from ..train import BLOCK


class Segment(NamedTuple):
    """A range of one parameter's elements."""

    parameter: int
    first: int
    n: int


def segments(sizes: Sequence[int], rank: int, world_size: int) -> List[Segment]:
    """What a rank has of parameters of so many elements."""
    total = sum(-(-size // BLOCK) for size in sizes)
    begin, end = (BLOCK * (total * r // world_size) for r in (rank, rank + 1))
    found, at = [], 0
    for parameter, size in enumerate(sizes):
        first, last = max(begin - at, 0), min(end - at, size)
        if first < last:
            found.append(Segment(parameter, first, last - first))
        at += -(-size // BLOCK) * BLOCK
    return found


class Ranks:
    """This process among those that share the states. group: torch.distributed's, or None.

    job: 16 bytes that all ranks of this run know; None without a group.
    """

    def __init__(self, rank: Optional[int], world_size: Optional[int], group: Any) -> None:
        if group is not None:
            import torch.distributed as dist

            mine = dist.get_rank(group), dist.get_world_size(group)
            if (rank, world_size) not in ((None, None), mine):
                raise ValueError(f"rank {rank} of {world_size} is, by its process group, {mine[0]} of {mine[1]}")
            rank, world_size = mine
        self.rank = 0 if rank is None else rank
        self.world_size = 1 if world_size is None else world_size
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is none of {self.world_size}")
        self.group = group
        self.job: Optional[bytes] = None

    def meet(self, params: Sequence[torch.Tensor]) -> None:
        """Agrees with the others on `job`. A collective call."""
        if self.group is None or self.world_size == 1:
            return
        device = params[0].device if params else torch.device("cpu")
        job = torch.frombuffer(bytearray(os.urandom(16)), dtype=torch.uint8).to(device)
        self._broadcast([(0, job)])
        self.job = bytes(job.tolist())

    def segments(self, params: Sequence[torch.Tensor]) -> List[Segment]:
        """This rank's."""
        return segments([p.numel() for p in params], self.rank, self.world_size)

    def exchange(self, params: Sequence[torch.Tensor]) -> None:
        """Each rank's part of the parameters goes to all others. A collective call."""
        if self.group is None or self.world_size == 1:
            return
        sizes = [p.numel() for p in params]
        parts = []
        for rank in range(self.world_size):
            for s in segments(sizes, rank, self.world_size):
                flat = params[s.parameter].detach().view(-1)[s.first : s.first + s.n]
                parts.append((rank, flat.view(torch.uint8)))  # gloo does not know all types
        self._broadcast(parts)

    def _broadcast(self, parts: Sequence[Tuple[int, torch.Tensor]]) -> None:
        import torch.distributed as dist

        works = []
        for rank, part in parts:
            source = dist.get_global_rank(self.group, rank)
            works.append(dist.broadcast(part, source, group=self.group, async_op=True))
        for work in works:
            work.wait()
