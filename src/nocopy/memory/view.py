"""Typed views of a memory, which NumPy, DLPack and the buffer protocol can read and write without a copy."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, SupportsIndex, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from nocopy.errors import ClosedError, CopyRefusedError, StaleViewError, UsageError
from nocopy.memory import dlpack, mapped
from nocopy.memory.dlpack import DLDeviceType
from nocopy.memory.dtype import DType
from nocopy.memory.gpu_view import GpuView
from nocopy.memory.linear import LinearMemory
from nocopy.memory.mapped import Mapping
from nocopy.memory.pages import Pages

Array: TypeAlias = npt.NDArray[Any]

CPU: Final = (int(DLDeviceType.CPU), 0)
NOT_MAPPED: Final = (
    "{} was asked for; CUDA has not mapped its memory, or does so no more. Memory is mapped while a guest or"
    " a session lies in it on a device 'cuda' that is open, or a Device.share of it."
)
GUEST_SPACE: Final = 0
"""The number of the guest's space in a tape record."""


class _Exporter:
    """What NumPy keeps as an array's base: it keeps the pages mapped, and nothing else."""

    def __init__(self, pages: Pages, interface: dict[str, Any]) -> None:
        self.pages = pages
        self.__array_interface__ = interface


def byte_array(memory: LinearMemory, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
    """Bytes of a memory as an array, u8 [nbytes], which keeps the pages mapped; without a view in between.

    Raises:
        ClosedError: the memory is closed.
        UsageError: the range is not inside the memory.
    """
    address = memory.check(offset, nbytes)
    interface = {"version": 3, "shape": (nbytes,), "typestr": "|u1", "data": (address, False)}
    return np.asarray(_Exporter(memory.pages, interface))


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides in elements of a row-major tensor of this shape."""
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


class TensorView:
    """A tensor whose elements lie in a `LinearMemory`, at a byte offset.

    It keeps the pages mapped, and so does every array made from it. Once the memory is closed the view
    itself refuses to be used; arrays made before stay readable. Once the memory has grown the view is
    stale; `refresh()` makes a new one.

    Args:
        memory: where the elements lie.
        offset: of the first element, in bytes; a multiple of the element size.
        shape: elements along each axis; `()` is one element.
        dtype: a `DType`, its name such as "bf16", or the NumPy dtype.
        strides: in elements; None means row-major and contiguous.

    Raises:
        ClosedError: the memory is closed.
        UsageError: the tensor is not inside the memory, is not aligned, or has an impossible shape or dtype.
    """

    space: int = GUEST_SPACE
    """The space that a tape operand names for it."""

    def __init__(
        self,
        memory: LinearMemory,
        offset: int,
        shape: int | Sequence[int],
        dtype: DType | npt.DTypeLike,
        *,
        strides: Sequence[int] | None = None,
    ) -> None:
        self._pages = memory.pages
        self._generation = memory.generation
        self._array: Array | None = None
        self.memory = memory
        self.dtype = DType.of(dtype)
        # Asking for a tuple first spares the usual case the check of a protocol, which takes 30 us.
        if isinstance(shape, tuple) or not isinstance(shape, SupportsIndex):
            self.shape = tuple(int(n) for n in shape)
        else:
            self.shape = (int(shape),)
        self.strides = contiguous_strides(self.shape) if strides is None else tuple(int(s) for s in strides)
        self.offset = int(offset)
        self._validate()

    def _validate(self) -> None:
        """Check shape, alignment and bounds; Python integers do not overflow."""
        itemsize = self.dtype.itemsize
        if itemsize == 0:
            raise UsageError("a view of dtype none was asked for; name the type of its elements")
        if any(n < 0 for n in self.shape) or len(self.strides) != len(self.shape):
            raise UsageError(
                f"shape {self.shape} with strides {self.strides} was asked for; every axis needs "
                "a length of 0 or more and one stride"
            )
        if self.offset % itemsize:
            raise UsageError(
                f"{self.dtype.name} elements at offset {self.offset} were asked for; "
                f"the offset must be a multiple of {itemsize} bytes"
            )
        first, end = self._extent()
        if first < 0 or end > self.memory.size:
            raise UsageError(
                f"a tensor of shape {self.shape}, {self.dtype.name}, at offset {self.offset} was asked for: "
                f"bytes {first} to {end}; the memory has bytes 0 to {self.memory.size}. "
                "Correct it, or grow the memory first."
            )

    def _extent(self) -> tuple[int, int]:
        """The bytes [first, end) of the memory that the elements lie in."""
        first, end = self.offset, self.offset
        if self.size:
            itemsize = self.dtype.itemsize
            reach = [(n - 1) * s * itemsize for n, s in zip(self.shape, self.strides, strict=True)]
            first += sum(r for r in reach if r < 0)
            end += itemsize + sum(r for r in reach if r > 0)
        return first, end

    # What it is

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, without gaps."""
        return self.size * self.dtype.itemsize

    @property
    def address(self) -> int:
        """Address of the first element. Errors as in `check`."""
        self.check()
        return self.memory.address + self.offset

    @property
    def is_contiguous(self) -> bool:
        """True if the elements lie in row-major order without gaps."""
        wanted = contiguous_strides(self.shape)
        return self.size < 2 or all(
            n == 1 or s == w for n, s, w in zip(self.shape, self.strides, wanted, strict=True)
        )

    def check(self) -> None:
        """Return if the view may be used.

        Raises:
            ClosedError: the memory is closed.
            StaleViewError: the memory has grown since the view was made.
        """
        generation = self.memory.generation
        if generation != self._generation:
            raise StaleViewError(
                f"a view made at growth {self._generation} was used; the memory is at growth {generation}, "
                f"{self.memory.size} bytes. Make a new one with refresh()."
            )

    def refresh(self) -> TensorView:
        """Return a view of the same elements, valid after the memory's last growth."""
        return TensorView(self.memory, self.offset, self.shape, self.dtype, strides=self.strides)

    def __len__(self) -> int:
        if not self.shape:
            raise UsageError("the length of a view of one element was asked for; it has no axes")
        return self.shape[0]

    def __repr__(self) -> str:
        kind = f"{self.dtype.name.lower()}{list(self.shape)}"
        return f"<TensorView {kind} at offset {self.offset} of {self.memory!r}>"

    # Other views of the same bytes

    def _like(self, array: Array, asked: str) -> TensorView:
        """Turn an array that NumPy derived from ours back into a view."""
        if array.flags.owndata:
            raise CopyRefusedError(
                f"{asked} was asked for; it would need a copy. Use basic slices and contiguous shapes, "
                "or copy on purpose with numpy().copy()."
            )
        itemsize = self.dtype.itemsize
        return TensorView(
            self.memory,
            array.ctypes.data - self.memory.address,
            array.shape,
            self.dtype,
            strides=[s // itemsize for s in array.strides],
        )

    def __getitem__(self, key: Any) -> TensorView:
        keys: tuple[Any, ...] = cast("tuple[Any, ...]", key) if isinstance(key, tuple) else (key,)
        # With an ellipsis, an index that selects one element still gives a view of it rather than its value.
        keys = keys if any(k is Ellipsis for k in keys) else (*keys, Ellipsis)
        try:
            return self._like(self.numpy()[keys], f"[{key!r}]")
        except IndexError as error:
            raise UsageError(f"[{key!r}] of a view of shape {self.shape} was asked for: {error}") from None

    def __setitem__(self, key: Any, value: npt.ArrayLike) -> None:
        try:
            self.numpy()[key] = value
        except (IndexError, TypeError) as error:
            raise UsageError(
                f"[{key!r}] = … on a view of shape {self.shape} was asked for: {error}"
            ) from None

    def reshape(self, *shape: int | Sequence[int]) -> TensorView:
        """Return a view with another shape; one axis may be -1.

        Raises:
            CopyRefusedError: the elements do not lie so that it can be had without a copy.
            UsageError: another number of elements.
        """
        dims = shape[0] if len(shape) == 1 else shape
        wanted = (
            (int(dims),)
            if isinstance(dims, SupportsIndex)
            else tuple(int(n) for n in cast("Sequence[int]", dims))
        )
        known = math.prod(n for n in wanted if n != -1)
        gaps = wanted.count(-1)
        if gaps == 1 and known > 0 and self.size % known == 0:
            wanted = tuple(self.size // known if n == -1 else n for n in wanted)
        if min(wanted, default=0) < 0 or math.prod(wanted) != self.size:
            raise UsageError(
                f"shape {wanted} was asked for; the view has shape {self.shape}, {self.size} elements"
            )
        try:
            reshaped = self.numpy().reshape(wanted, copy=False)
        except ValueError:
            raise CopyRefusedError(
                f"shape {wanted} was asked for of shape {self.shape} with strides {self.strides}; "
                "it would need a copy. Reshape before slicing, or copy on purpose with numpy().copy()."
            ) from None
        return self._like(reshaped, f"reshape{wanted}")

    def permute(self, *axes: int) -> TensorView:
        """Return a view with its axes in the order given; without arguments, reversed."""
        try:
            return self._like(self.numpy().transpose(axes or None), f"permute{axes}")
        except ValueError as error:
            raise UsageError(
                f"permute{axes} of a view of shape {self.shape} was asked for: {error}"
            ) from None

    def transpose(self, a: int = -2, b: int = -1) -> TensorView:
        """Return a view with two axes exchanged; the last two unless named."""
        try:
            return self._like(self.numpy().swapaxes(a, b), f"transpose({a}, {b})")
        except ValueError as error:
            raise UsageError(
                f"transpose({a}, {b}) of a view of shape {self.shape} was asked for: {error}"
            ) from None

    @property
    def T(self) -> TensorView:
        """The view with its axes reversed."""
        return self.permute()

    # Other libraries

    def _interface(self, typestr: str) -> dict[str, Any]:
        itemsize = self.dtype.itemsize
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": typestr,
            "data": (self.address, False),
            "strides": tuple(s * itemsize for s in self.strides),
        }

    def numpy(self) -> Array:
        """Return a writable array of the same elements, without a copy. Errors as in `check`."""
        self.check()
        if self._array is None:
            # NumPy's interface has no bfloat16: go through the bits.
            bits = "<u2" if self.dtype is DType.BF16 else self.dtype.numpy.str
            self._array = np.asarray(_Exporter(self._pages, self._interface(bits))).view(self.dtype.numpy)
        return self._array

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """NumPy's array interface, version 3. Missing for BF16, so that NumPy asks `__array__`."""
        if self.dtype is DType.BF16:
            raise AttributeError("the array interface cannot describe bfloat16")
        return self._interface(self.dtype.numpy.str)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """Return the elements as an array; with `copy=False`, another dtype is refused."""
        array = self.numpy()
        if dtype is not None and np.dtype(dtype) != array.dtype:
            if copy is False:
                raise CopyRefusedError(
                    f"dtype {dtype!r} without a copy was asked for; the view is {array.dtype}"
                )
            return array.astype(dtype)
        return array.copy() if copy else array

    def buffer(self) -> memoryview[Any]:
        """Return a writable `memoryview` of the elements, without a copy. Errors as in `check`.

        Raises:
            UsageError: the view is BF16, which the buffer protocol cannot describe.
        """
        if self.dtype is DType.BF16:
            raise UsageError(
                "a buffer of a BF16 view was asked for; the buffer protocol has no bfloat16. "
                "Use numpy(), DLPack, or a view of dtype u8."
            )
        return self.numpy().data

    def __buffer__(self, flags: int) -> memoryview[Any]:
        """Serve `memoryview(view)`, from Python 3.12 on."""
        del flags  # memoryview asks the array for what it needs; the array serves every combination
        return self.buffer()

    def _on_gpu(self) -> Mapping | None:
        """Where kernels see the first element; None if CUDA has not mapped them all. Errors as in `check`."""
        self.check()
        base = self.memory.address
        first, end = (base + at for at in self._extent())
        found = mapped.find(first, end)
        if found is None:
            return None
        return replace(found, device_address=found.device_address + base + self.offset - first)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """CUDA's array interface, version 3: what CuPy and PyTorch need to compute on the elements in place.

        No stream: what nocopy computes is finished when its call returns. Missing for BF16, which it cannot
        describe, and where CUDA has not mapped the memory. Errors as in `check`.
        """
        found = self._on_gpu()
        if self.dtype is DType.BF16:
            raise AttributeError(
                "the CUDA array interface cannot describe bfloat16. Use DLPack,"
                " torch.from_dlpack(view.on_gpu()), or a view of the same bytes of dtype u8."
            )
        if found is None:
            raise AttributeError(NOT_MAPPED.format(f"the CUDA array interface of {self!r}"))
        interface = self._interface(self.dtype.numpy.str)
        data = (found.device_address if self.size else 0, False)
        return {**interface, "data": data, "stream": None}

    def on_gpu(self) -> GpuView:
        """Return the same elements, stated to lie on the GPU: for `torch.from_dlpack` and `cupy.from_dlpack`.

        Raises:
            CopyRefusedError: CUDA has not mapped the memory. Errors as in `check`.
        """
        found = self._on_gpu()
        if found is None:
            raise CopyRefusedError(NOT_MAPPED.format(f"{self!r} on the GPU"))
        return GpuView(self, found.number)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the DLPack device type and number: the CPU's. `__dlpack__` names others when asked."""
        return CPU

    def __dlpack__(
        self,
        *,
        stream: int | Any | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a DLPack capsule, of version 1 if the consumer knows it.

        Args:
            stream: of the consumer's, on a GPU; what nocopy computes is finished, so nothing waits for it.
            max_version: of the consumer's.
            dl_device: None or the CPU, (1, 0); or (2, 0), the GPU, or (3, 0), host memory that the GPU has
            mapped: the same elements, as the CUDA device reaches them.
            copy: True for a copy in plain host memory. Nothing else is ever copied.

        Raises:
            UsageError: a stream was named, and the tensor is for the CPU, which has none.
            CopyRefusedError: the tensor was asked for on a device that does not reach it.
        """
        device = CPU if dl_device is None else (int(dl_device[0]), int(dl_device[1]))
        if stream is not None and device[0] != DLDeviceType.CUDA:
            raise UsageError(
                f"stream {stream!r} was asked for; memory on the host has no streams. Pass None."
            )
        if copy and device != CPU:
            raise CopyRefusedError(
                f"a copy on DLPack device {device} was asked for; copies are made in plain host memory. Take"
                " the elements with copy=False, and copy them with your library."
            )
        source = self.copy() if copy else self
        return dlpack.capsule(
            source._pages,
            source._address_on(device),
            source.shape,
            source.strides,
            source.dtype,
            device,
            versioned=max_version is not None and max_version[0] >= 1,
            copied=bool(copy),
        )

    def _address_on(self, device: tuple[int, int]) -> int:
        """The first element's address for a DLPack device.

        Raises:
            CopyRefusedError: the device does not reach it.
        """
        if device == CPU:
            return self.address
        kind, number = device
        if kind not in (DLDeviceType.CUDA, DLDeviceType.CUDA_HOST):
            raise CopyRefusedError(
                f"DLPack device {device} was asked for; the tensor lies on {CPU}, and moving it would need a"
                " copy. Import it where it is, or copy it on purpose."
            )
        found = self._on_gpu()
        if found is None:
            raise CopyRefusedError(NOT_MAPPED.format(f"DLPack device {device} of {self!r}"))
        if number != found.number:
            raise CopyRefusedError(
                f"DLPack device {device} was asked for; the tensor lies where GPU {found.number} reaches it:"
                f" ask for ({kind}, {found.number})"
            )
        return found.device_address if kind == DLDeviceType.CUDA else self.address

    def copy(self) -> TensorView:
        """Return a row-major copy in a memory of its own."""
        memory = LinearMemory(self.nbytes, reserve=self.nbytes, guard=0)
        result = TensorView(memory, 0, self.shape, self.dtype)
        result.numpy()[...] = self.numpy()
        return result

    def _repr_html_(self) -> str:
        """Describe the view and its first elements, for notebooks."""
        facts = f"{self.dtype.name.lower()} {list(self.shape)}, {self.nbytes} bytes at offset {self.offset}"
        try:
            values = html.escape(np.array2string(self.numpy(), threshold=64, edgeitems=3))
            state = f"shared with the memory at {self.memory.address:#x}"
        except (ClosedError, StaleViewError) as error:
            values, state = "", html.escape(str(error))
        return f"<div><b>TensorView</b> {facts}<br><small>{state}</small><pre>{values}</pre></div>"
