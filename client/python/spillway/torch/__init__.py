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

import errno
import os
from typing import Any, List, Optional, Union

from ..errors import NotFound, SpillwayError
from ..session import Pool, Session
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
    name: str = "train",
    pool: Optional[str] = None,
    socket: Union[str, "os.PathLike[str]", None] = None,
    **options: Any,
) -> Pool:
    """A pool of a session of its own, which starts the user's own daemon where none runs (start=False: does not).

    name: of the job, for `spillctl sessions`; and the pool is the daemon's of that name, if it has one, else its pool
    "default". pool: this one and no other. options: as spillway.connect() has them; dram and disk are of a daemon that
    is started.
    Close it by `pool.session.close()`, after the optimizers that use it; else it ends with the program.

    NotFound: there is none of these; it says which pools there are. SpillwayError with EACCES: the pool is not for this
    user.
    """
    options.setdefault("start", True)
    session = _connect(name, socket, **options)
    try:
        return _open(session, [name, "default"] if pool is None else [pool])
    except BaseException:
        session.close()
        raise


def _open(session: Session, names: List[str]) -> Pool:
    """The first of these that there is."""
    for name in names:
        try:
            return session.pool(name)
        except SpillwayError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):  # none of that name, or no name for a pool
                raise
    wanted = " or ".join(map(repr, names))
    raise NotFound(errno.ENOENT, f"the daemon has no pool {wanted}{_pools_of(session)}")


def _pools_of(session: Session) -> str:
    try:
        pools = session.admin({"get": "pools"})["pools"]
    except SpillwayError:
        return ""  # not for everybody
    return f", it has {', '.join(repr(pool['name']) for pool in pools)}: name one with `pool=`"
