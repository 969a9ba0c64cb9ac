"""What `import nocopy` offers."""

import subprocess
import sys

import pytest

import nocopy


@pytest.mark.parametrize("name", nocopy.__all__)
def test_every_public_name_loads(name):
    assert getattr(nocopy, name) is not None
    assert name in dir(nocopy)


def test_the_list_is_complete():
    assert {*nocopy._PLACES, "errors"} == set(nocopy.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Gest'"):
        nocopy.Gest  # noqa: B018


def test_importing_loads_no_library():
    loaded = "import nocopy, sys; print([m for m in ('numpy', 'wasmtime', 'vulkan') if m in sys.modules])"
    printed = subprocess.check_output([sys.executable, "-c", loaded], text=True)
    assert printed.strip() == "[]"
