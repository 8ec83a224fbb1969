# SPDX-License-Identifier: Apache-2.0
"""Leased bytes as torch's tensors."""
from __future__ import annotations

import torch

from .._native import ffi


def floats(address: int, n: int) -> torch.Tensor:
    """A tensor over n floats at an address, which must outlive it: nobody checks."""
    return torch.frombuffer(ffi.buffer(ffi.cast("char *", address), 4 * n), dtype=torch.float32)


def octets(address: int, n: int) -> torch.Tensor:
    """The same over n bytes."""
    return torch.frombuffer(ffi.buffer(ffi.cast("char *", address), n), dtype=torch.uint8)
