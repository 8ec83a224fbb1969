# SPDX-License-Identifier: Apache-2.0
"""The Python client of spillwayd, the daemon that owns the slow memory of a machine with accelerators.

    import spillway

    with spillway.connect("example") as session:
        space = session.pool("default").space({"what": "states", "dtype": "float32"})
        tensor = space.tensor("layer.0", 1 << 20)
        with tensor.acquire(write=True) as views:
            views[0].data[:5] = b"hello"

It is libspillway (<spillway/spillway.h>, docs/client.md) in Python's terms: bytes are memoryviews without a copy,
errors are exceptions that name the limit and its knob, blocking calls release the GIL. Needs cffi alone.
"""
from . import gpu
from ._version import VERSION as __version__
from .errors import (
    Busy,
    Corrupted,
    Disconnected,
    Limit,
    NoDaemon,
    NoGpu,
    NoSpace,
    NoSpaceInTime,
    NotFound,
    SpillwayError,
    Statuses,
    Timeout,
)
from .queue import Queue
from .session import ManifestEntry, Pool, PoolInfo, Session, Sizing, connect, layout_digest
from .space import Hit, Hits, Space, Stat
from .tensor import Tensor
from .views import Reservation, View, Views

__all__ = [
    "Busy",
    "Corrupted",
    "Disconnected",
    "Hit",
    "Hits",
    "Limit",
    "ManifestEntry",
    "NoDaemon",
    "NoGpu",
    "NoSpace",
    "NoSpaceInTime",
    "NotFound",
    "Pool",
    "PoolInfo",
    "Queue",
    "Reservation",
    "Session",
    "Sizing",
    "Space",
    "SpillwayError",
    "Stat",
    "Statuses",
    "Tensor",
    "Timeout",
    "View",
    "Views",
    "__version__",
    "connect",
    "gpu",
    "layout_digest",
]
