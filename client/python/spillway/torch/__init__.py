# SPDX-License-Identifier: Apache-2.0
"""Spillway for PyTorch: optimizer states and activations that live in the daemon's memory and on its devices.

    import spillway.torch as spw

    pool = spw.connect("train")
    opt = spw.OffloadAdamW(model.parameters(), pool, lr=1e-4)
    with spw.offload_activations(pool):
        loss = model(x).sum()
    loss.backward(); opt.step(); opt.zero_grad()
    opt.save("step-1000")

docs/training.md tells how much memory that takes, and how to size the pool.
"""
from __future__ import annotations

import os
from typing import Any, Union

from ..session import Pool
from ..session import connect as _connect
from .activations import ActivationStats, offload_activations
from .adamw import OffloadAdamW
from .device import attach, region
from .saving import Saving
from .snapshot import Snapshot, snapshots
from .timeline import Event, Sample, Timeline

__all__ = [
    "ActivationStats",
    "Event",
    "OffloadAdamW",
    "Sample",
    "Saving",
    "Snapshot",
    "Timeline",
    "attach",
    "connect",
    "offload_activations",
    "region",
    "snapshots",
]


def connect(
    name: str = "train", pool: str = "default", socket: Union[str, "os.PathLike[str]", None] = None, **options: Any
) -> Pool:
    """A pool of a session of its own, which starts the user's own daemon where none runs (start=False: does not).

    Close it by `pool.session.close()`, after the optimizers that use it; else it ends with the program.
    """
    options.setdefault("start", True)
    return _connect(name, socket, **options).pool(pool)
