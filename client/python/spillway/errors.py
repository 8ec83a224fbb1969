# SPDX-License-Identifier: Apache-2.0
"""Errors: what the C library says, as exceptions that name the limit that was met, and the knob that raises it.

Arguments that never reach the library (a wrong type, a number that no field has room for) are TypeError, ValueError or
OverflowError, as everywhere in Python. A view that was released is a ValueError, as with a memoryview.
"""
from __future__ import annotations

import errno
import os
from typing import Iterable, List, NamedTuple, Optional, Type

from ._native import ffi, lib

__all__ = [
    "Busy",
    "Corrupted",
    "Disconnected",
    "Limit",
    "NoDaemon",
    "NoGpu",
    "NoSpace",
    "NoSpaceInTime",
    "NotFound",
    "SpillwayError",
    "Statuses",
    "Timeout",
]

_LIMIT_NAMES = {number: name[len("SPW_LIMIT_") :] for number, name in ffi.typeof("enum spw_limit").elements.items()}


class Limit(NamedTuple):
    """A limit of the daemon's that was met.

    number: enum spw_limit; name: "POOL_DRAM", for SPW_LIMIT_POOL_DRAM; text: what it is, and which line of the daemon's
    configuration raises it.
    """

    number: int
    name: str
    text: str

    @classmethod
    def of(cls, number: int) -> Optional["Limit"]:
        """The limit of that number; None for 0, which is none."""
        if number == lib.SPW_LIMIT_NONE:
            return None
        text = ffi.string(lib.spw_limit_text(number)).decode("utf-8", "replace")
        return cls(number, _LIMIT_NAMES.get(number, str(number)), text)


class SpillwayError(OSError):
    """A call failed. errno: a positive errno; strerror: what was wrong, in words; limit: a Limit, or None."""

    limit: Optional[Limit]

    def __init__(self, number: int, text: str, limit: Optional[Limit] = None) -> None:
        super().__init__(number, text)
        self.limit = limit


class NotFound(SpillwayError):
    """ENOENT: no such object, pool, or space."""


class NoSpace(SpillwayError):
    """ENOSPC: no room, or not in time; `limit` tells what is full."""


class Busy(SpillwayError):
    """EBUSY, EAGAIN: not now."""


class Timeout(SpillwayError, TimeoutError):
    """ETIMEDOUT: not within the call's timeout."""


class NoSpaceInTime(NoSpace, Timeout):
    """ETIMEDOUT where a limit was met: no room within the call's timeout; `limit` tells what is full."""


class Corrupted(SpillwayError):
    """EBADMSG: a checksum failed; the object is gone."""


class Disconnected(SpillwayError, ConnectionError):
    """ENOTCONN, EPROTO: the daemon is gone for good, or ended the session. Close it, and connect anew."""


class NoDaemon(Disconnected):
    """connect() found no daemon."""


class NoGpu(SpillwayError):
    """ENOSYS, ENODEV: there is no driver on this machine, no such GPU, or the daemon cannot use it; it says which."""


_CLASSES = {
    errno.ENOENT: NotFound,
    errno.ENOSPC: NoSpace,
    errno.EBUSY: Busy,
    errno.EAGAIN: Busy,
    errno.ETIMEDOUT: Timeout,
    errno.EBADMSG: Corrupted,
    errno.ENOTCONN: Disconnected,
    errno.EPROTO: Disconnected,
}


def last_error(status: int, cls: Optional[Type[SpillwayError]] = None) -> SpillwayError:
    """The exception for what the calling thread's last call returned, a negative errno."""
    text = ffi.string(lib.spw_error_text()).decode("utf-8", "replace")
    limit = Limit.of(lib.spw_error_limit())
    return (cls or _class(-status, limit))(-status, text, limit)


def _class(number: int, limit: Optional[Limit]) -> Type[SpillwayError]:
    if number == errno.ETIMEDOUT and limit is not None:
        return NoSpaceInTime
    return _CLASSES.get(number, SpillwayError)


def status_error(status: int, what: str, detail: int = 0) -> SpillwayError:
    """The exception for an element's status, a negative errno, and its `detail`, a limit's number."""
    limit = Limit.of(detail)
    text = f"{what}: {os.strerror(-status)}" + (f": {limit.text}" if limit else "")
    return _class(-status, limit)(-status, text, limit)


class Statuses(List[int]):
    """How each element of a list went: 0, or a negative errno, as in C.

    sizes: of a get, the objects' sizes in bytes, which tell also how much room an element with -EMSGSIZE needs.
    """

    def __init__(self, statuses: Iterable[int], sizes: Iterable[int] = ()) -> None:
        super().__init__(statuses)
        self.sizes = list(sizes)

    def check(self, *allowed: int) -> "Statuses":
        """Raises the error of the first element that failed, unless its errno (errno.EEXIST) is allowed."""
        for i, status in enumerate(self):
            if status < 0 and -status not in allowed:
                raise status_error(status, f"element {i}")
        return self
