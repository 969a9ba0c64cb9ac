"""A view as libraries want it that ask a tensor for its device before they ask for the tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nocopy.memory.dlpack import DLDeviceType

if TYPE_CHECKING:
    from nocopy.memory.view import TensorView


class GpuView:
    """The elements of a view, stated to lie on the GPU that has mapped them; made by `TensorView.on_gpu`.

    PyTorch's `from_dlpack` copies, or refuses, what states another device than the one that is wanted.
    """

    def __init__(self, view: TensorView, number: int) -> None:
        self.view, self.number = view, number

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """See `TensorView.__cuda_array_interface__`."""
        return self.view.__cuda_array_interface__

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the DLPack device type and number: CUDA's, and the GPU's."""
        return (int(DLDeviceType.CUDA), self.number)

    def __dlpack__(
        self,
        *,
        stream: int | Any | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """See `TensorView.__dlpack__`; for the GPU unless another device is asked for."""
        return self.view.__dlpack__(
            stream=stream, max_version=max_version, dl_device=dl_device or self.__dlpack_device__(), copy=copy
        )
