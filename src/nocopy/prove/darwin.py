"""Resident memory on macOS, from the kernel: getrusage only knows the highest value so far."""

from __future__ import annotations

import ctypes

from nocopy.errors import DeviceError

MACH_TASK_BASIC_INFO = 20  # <mach/task_info.h>


class TaskBasicInfo(ctypes.Structure):
    """`mach_task_basic_info`."""

    _fields_ = (
        ("virtual_size", ctypes.c_uint64),
        ("resident_size", ctypes.c_uint64),
        ("resident_size_max", ctypes.c_uint64),
        ("user_time", ctypes.c_int32 * 2),
        ("system_time", ctypes.c_int32 * 2),
        ("policy", ctypes.c_int32),
        ("suspend_count", ctypes.c_int32),
    )


def resident_bytes() -> int:
    """Bytes of this process that are in memory now.

    Raises:
        DeviceError: the kernel does not say.
    """
    system = ctypes.CDLL("/usr/lib/libSystem.B.dylib")
    info = TaskBasicInfo()
    words = ctypes.c_uint32(ctypes.sizeof(info) // 4)
    system.mach_task_self.restype = ctypes.c_uint32
    status = system.task_info(
        ctypes.c_uint32(system.mach_task_self()),
        ctypes.c_uint32(MACH_TASK_BASIC_INFO),
        ctypes.byref(info),
        ctypes.byref(words),
    )
    if status:
        raise DeviceError(f"resident memory was to be measured; task_info answered {status}")
    return int(info.resident_size)
