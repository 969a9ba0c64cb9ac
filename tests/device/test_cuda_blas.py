"""cuBLASLt where it is missing or refuses. What it computes, `test_cuda_prefill.py` asks."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nocopy.device import cuda, cuda_blas
from nocopy.device.cuda_blas import Blas, Product, load_blas, version_name
from nocopy.errors import DeviceError
from nocopy.memory.dtype import DType
from tests.device.cuda_emulation import EmulatedDriver, NamingCompiler, library  # noqa: F401

PRODUCT = Product(16, 16, 16, DType.BF16, 4096, 16, 8192, 16, 12288, 16, 1.0)


class Refusing:
    """A library whose calls succeed, but for one that gives a status; and what was made and not freed."""

    def __init__(self, refused: str = "", status: int = 1) -> None:
        self.alive: set[int] = set()
        self.refused, self.status = refused, status
        for name in cuda_blas._SIGNATURES:
            setattr(self, name, self._call(name))

        def version() -> int:
            return 130100

        self.cublasLtGetVersion = version  # a function, since its types are set

    def _call(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if name == self.refused:
                return self.status
            if name.endswith("Create"):
                made = len(self.alive) + 1
                arguments[0]._obj.value = made
                self.alive.add(made)
            if name.endswith("Destroy"):
                self.alive.discard(arguments[0].value)
            return 0

        return call


def opened(fake: Refusing) -> Blas:
    return Blas(fake)  # type: ignore[arg-type]


def test_a_library_that_does_not_start_says_with_which_status() -> None:
    with pytest.raises(DeviceError, match="cublasLtCreate failed with cublasStatus 1"):
        opened(Refusing("cublasLtCreate"))


def test_a_product_without_an_algorithm_names_its_shape() -> None:
    fake = Refusing()  # finds none
    blas = opened(fake)
    with pytest.raises(DeviceError, match=r"16 x 16 by 16 x 16 in bf16 .* cuBLASLt 13\.1\.0"):
        blas.launcher(PRODUCT, 4096, 1)
    assert fake.alive == {1}, "all but the handle has been freed"
    blas.close()
    assert not fake.alive


@pytest.mark.parametrize("call", ["cublasLtMatrixLayoutCreate", "cublasLtMatmulAlgoGetHeuristic"])
def test_what_was_made_for_a_product_that_fails_is_freed(call: str) -> None:
    fake = Refusing(call, 15)
    blas = opened(fake)
    with pytest.raises(DeviceError, match=f"{call} failed with cublasStatus 15"):
        blas.launcher(PRODUCT, 4096, 1)
    assert fake.alive == {1}


@pytest.mark.parametrize(("number", "name"), [(130100, "13.1.0"), (120304, "12.3.4")])
def test_versions_are_written_as_people_write_them(number: int, name: str) -> None:
    assert version_name(number) == name


def test_without_the_library_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(cuda_blas, "import_module", missing)
    assert load_blas() is None


@contextmanager
def device_with(library: ctypes.CDLL, found: Refusing | None, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """What a device says of its products where this library is found."""
    patch.setattr(cuda, "load_blas", lambda: found)
    driver = EmulatedDriver(library)
    blas = cuda._open_blas(driver)  # type: ignore[arg-type]
    device = cuda.CudaDevice(driver, NamingCompiler(), blas=blas)  # type: ignore[arg-type]
    yield device.info.details["products"]
    device.close()


def test_the_device_says_what_takes_its_products(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = Refusing()
    with device_with(library, working, monkeypatch) as said:
        assert said == "cuBLASLt 13.1.0"
    assert not working.alive, "closed with the device"
    with device_with(library, None, monkeypatch) as said:
        assert "pip install nvidia-cublas" in said
    with device_with(library, Refusing("cublasLtCreate"), monkeypatch) as said:
        assert "does not start here (cublasLtCreate failed with cublasStatus 1)" in said
