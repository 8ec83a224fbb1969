# SPDX-License-Identifier: Apache-2.0
"""Which of a pool's tiers an optimizer's states are kept in, and whether it has the room."""
from __future__ import annotations

import errno
from typing import Literal

from ..errors import NoSpace, SpillwayError
from ..session import Pool
from .saving import mib

Tier = Literal["auto", "dram", "nvme"]
TIERS = ("auto", "dram", "nvme")
MEMORY_PERCENT = 90  # of a pool's memory that states of the tier "dram" may fill: the daemon keeps some free or clean
DEVICE_PERCENT = 90  # of its share of devices: they have a log, and room to write anew what has changed
_NAME_BYTES = 4096  # of what is reserved beside the states


def check_room(tier: str, pool: Pool, needed: int) -> None:
    """Raises why a pool cannot keep so many bytes of states there."""
    if tier not in TIERS:
        raise ValueError(f"tier is one of {', '.join(TIERS)}; not {tier!r}")
    info = pool.info
    memory = info.dram_bytes + info.cxl_bytes
    if tier == "nvme" and not info.nvme_bytes:
        raise SpillwayError(
            errno.ENODEV,
            f'tier="nvme" needs a device, and pool {pool.name!r} has nothing on one: '
            f"add a [device] and `nvme` of [pool {pool.name}]",
        )
    if tier == "dram" and needed > memory * MEMORY_PERCENT // 100:
        least = needed * 100 // MEMORY_PERCENT
        raise NoSpace(
            errno.ENOSPC,
            f'tier="dram" keeps {mib(needed)} MiB of states in memory, which takes {mib(least)} MiB, and pool '
            f"{pool.name!r} has {memory >> 20} MiB: raise `dram` of [pool {pool.name}]",
        )
    if needed + _NAME_BYTES > memory + info.nvme_bytes * DEVICE_PERCENT // 100:
        if info.nvme_bytes:
            has = f"{memory >> 20} MiB of memory and {info.nvme_bytes >> 20} MiB on devices"
            knob = f"raise `nvme` or `dram` of [pool {pool.name}]"
        else:
            has = f"{memory >> 20} MiB of memory and no device"
            knob = f"raise `dram` of [pool {pool.name}], or add a [device] and its `nvme`"
        raise NoSpace(errno.ENOSPC, f"the states take {mib(needed)} MiB, and pool {pool.name!r} has {has}: {knob}")
