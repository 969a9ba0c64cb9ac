"""DLPack: the structures of dlpack.h (version 1.0) and capsules around them.

A capsule hands a pointer to another framework together with a deleter. Until the deleter has run,
`_exports` keeps the structure, its shape and strides, and the pages alive.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final

from nocopy.memory.dtype import DType
from nocopy.memory.pages import Pages


class DLDeviceType(IntEnum):
    """Where a tensor lies: the members of dlpack.h's enumeration that nocopy can name."""

    CPU = 1
    CUDA = 2
    CUDA_HOST = 3
    VULKAN = 7
    METAL = 8


VERSION: Final = (1, 0)
FLAG_IS_COPIED: Final = 2

# DLDataType as (code, bits): 0 signed integer, 1 unsigned integer, 2 float, 4 bfloat.
_DATA_TYPES: Final = {
    DType.F32: (2, 32),
    DType.F16: (2, 16),
    DType.BF16: (4, 16),
    DType.I32: (0, 32),
    DType.U8: (1, 8),
}


class _Device(ctypes.Structure):
    _fields_ = [("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", _Deleter)]


class _ManagedVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


_NAME: Final = b"dltensor"
_NAME_VERSIONED: Final = b"dltensor_versioned"

_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
# `ctypes.pythonapi` is shared by the whole process, and so would be the types declared here.
_python = ctypes.PyDLL(None)
_new_capsule = _python.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _Destructor]
# The destructor sees a capsule whose reference count is already 0: it must stay a bare pointer, never a
# Python object.
_is_valid = _python.PyCapsule_IsValid
_is_valid.restype = ctypes.c_int
_is_valid.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_get_pointer = _python.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]

_exports: dict[int, tuple[Any, ...]] = {}


@_Deleter
def _delete(managed: int) -> None:
    _exports.pop(managed, None)


@_Destructor
def _destroy(capsule: int) -> None:
    # A consumer that took the tensor has renamed the capsule, and calls the deleter itself.
    for name in (_NAME, _NAME_VERSIONED):
        if _is_valid(capsule, name):
            _exports.pop(_get_pointer(capsule, name), None)


def live_exports() -> int:
    """How many tensors other frameworks still hold through DLPack."""
    return len(_exports)


def capsule(
    pages: Pages,
    address: int,
    shape: Sequence[int],
    strides: Sequence[int],
    dtype: DType,
    device: tuple[int, int],
    *,
    versioned: bool,
    copied: bool = False,
) -> Any:
    """Return a capsule for elements at `address`; strides are in elements.

    `pages` stays mapped until it is deleted.
    """
    dims = (ctypes.c_int64 * len(shape))(*shape)
    steps = (ctypes.c_int64 * len(shape))(*strides)
    code, bits = _DATA_TYPES[dtype]
    tensor = _Tensor(
        address,
        _Device(*device),
        len(shape),
        _DataType(code, bits, 1),
        ctypes.cast(dims, ctypes.POINTER(ctypes.c_int64)),
        ctypes.cast(steps, ctypes.POINTER(ctypes.c_int64)),
        0,
    )
    if versioned:
        flags = FLAG_IS_COPIED if copied else 0
        managed, name = _ManagedVersioned(*VERSION, None, _delete, flags, tensor), _NAME_VERSIONED
    else:
        managed, name = _Managed(tensor, None, _delete), _NAME
    key = ctypes.addressof(managed)
    _exports[key] = (managed, dims, steps, pages)
    try:
        return _new_capsule(key, name, _destroy)
    except BaseException:
        del _exports[key]
        raise
