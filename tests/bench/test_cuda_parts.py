"""What `bench/cuda_parts.py` leaves out of a kernel: each change fits; what it measures needs a GPU."""

import cuda_parts
import pytest

from nocopy.device.cuda_compile import kernel_sources


@pytest.mark.parametrize("name", list(cuda_parts.LEFT_OUT))
def test_what_is_left_out_is_there(name):
    sources, changes = kernel_sources(), cuda_parts.LEFT_OUT[name]
    made = cuda_parts.changed(sources, changes)
    assert {file for file in sources if made[file] != sources[file]} == {file for file, _, _ in changes}


def test_a_change_that_fits_nowhere_is_refused():
    with pytest.raises(SystemExit, match=r"walk\.cu has 0 places"):
        cuda_parts.changed(kernel_sources(), (("walk.cu", "what is not there", ""),))


def test_sources_are_as_they_were_afterwards():
    pace, sources = cuda_parts.cuda_walk_flow.PACE, cuda_parts.cuda_compile.kernel_sources
    with cuda_parts.without(cuda_parts.NO_COPIES):
        assert cuda_parts.cuda_walk_flow.PACE == 0
        assert cuda_parts.cuda_compile.kernel_sources() != sources()
    assert pace == cuda_parts.cuda_walk_flow.PACE
    assert cuda_parts.cuda_compile.kernel_sources is sources
