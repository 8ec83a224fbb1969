# SPDX-License-Identifier: Apache-2.0
"""Bytes of a view for arrays of other libraries, by DLPack: one dimension of uint8 on the CPU, without a copy.

The structures are those of dlpack.h, https://dmlc.github.io/dlpack/latest/c_api.html. What takes a capsule calls the
structure's deleter, from any thread, when its last array has gone; until then the structure, and by it the bytes'
owner, is kept here.
"""
from __future__ import annotations

import ctypes
from typing import Any, Dict, Optional, Tuple

CPU = (1, 0)  # kDLCPU, and which one
_VERSION = (1, 0)
_READ_ONLY = 1
_NAME, _VERSIONED_NAME = b"dltensor", b"dltensor_versioned"
_UINT = 1


class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("number", ctypes.c_int)]


class _Type(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]


class _Version(ctypes.Structure):
    _fields_ = [("major", ctypes.c_uint32), ("minor", ctypes.c_uint32)]


class _ManagedVersioned(ctypes.Structure):
    _fields_ = [
        ("version", _Version),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


_kept: Dict[int, Tuple[Any, ...]] = {}  # by a structure's address: it, its shape, the bytes' owner


def _delete(address: int) -> None:
    _kept.pop(address, None)


_deleter = _Deleter(_delete)

_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
# By address: in its destructor a capsule has no references any more, and must get none.
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _capsule_ends(capsule: int) -> None:
    for name in (_NAME, _VERSIONED_NAME):  # who has taken it has changed its name
        if _is_valid(capsule, name):
            _delete(_pointer(capsule, name))


def export(owner: Any, address: int, size: int, writable: bool, max_version: Optional[Tuple[int, int]]) -> Any:
    """A capsule for bytes that owner keeps. BufferError if they could be written, and must not."""
    shape = (ctypes.c_int64 * 1)(size)
    tensor = _Tensor(address, _Device(*CPU), 1, _Type(_UINT, 8, 1), shape, None, 0)
    managed: Any
    if max_version is not None and max_version[0] >= _VERSION[0]:
        flags = 0 if writable else _READ_ONLY
        managed, name = _ManagedVersioned(_Version(*_VERSION), None, _deleter, flags, tensor), _VERSIONED_NAME
    elif writable:
        managed, name = _Managed(tensor, None, _deleter), _NAME
    else:
        raise BufferError("the lease is for reading, which DLPack before 1.0 cannot tell an array")
    at = ctypes.addressof(managed)
    _kept[at] = (managed, shape, owner)
    try:
        return _new(at, name, ctypes.cast(_capsule_ends, ctypes.c_void_p))
    except BaseException:
        _delete(at)
        raise
