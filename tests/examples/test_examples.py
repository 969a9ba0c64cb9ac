"""Every example does on every device what its README says."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from nocopy.device.protocol import Device, Mode
from nocopy.errors import ExitError
from nocopy.examples import EXAMPLES, find
from nocopy.interfaces.attachment import ComputeLimits
from nocopy.interfaces.host import DeviceGuest
from nocopy.wasm import Dir, Limits
from tests.device.conftest import NAMES, open_or_skip
from tools.build_examples import build

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "examples"


@pytest.fixture(scope="module", params=NAMES)
def device(request: pytest.FixtureRequest) -> Device:
    device = open_or_skip(request.param)
    yield device
    device.close()


def run(
    name: str, *args: str, device: Device | str = "reference", status: int = 0, **kw: object
) -> DeviceGuest:
    """Run an example to its end; returns the guest, closed, with what it wrote."""
    module = find(f"examples/{name}")
    assert module is not None
    with DeviceGuest(
        module, device=device, args=[name, *args], stdout="capture", stderr="capture", **kw
    ) as guest:
        with pytest.raises(ExitError) if status else nullcontext() as ended:
            guest.run()
        assert ended is None or ended.value.status == status
    return guest


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_prebuilt_module_is_what_the_source_gives(name: str, tmp_path: Path) -> None:
    assert (
        build(name, tmp_path / "new.wasm").read_bytes() == (find(f"examples/{name}") or Path()).read_bytes()
    )


def test_examples_are_found_by_their_name_in_the_repository() -> None:
    for name in EXAMPLES:
        for spelling in (f"examples/{name}", f"./examples/{name}/", f"/anywhere/examples/{name}"):
            found = find(spelling)
            assert found is not None
            assert found.read_bytes().startswith(b"\0asm")
    for other in ("matmul", "examples", "examples/", "examples/abacus", "examples/matmul.wasm", "", "/"):
        assert find(other) is None


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_has_a_readme_with_its_command(name: str) -> None:
    readme = (SOURCES / name / "README.md").read_text()
    assert re.search(rf"nocopy run .*\bexamples/{name}|python -m nocopy\.examples\.{name}", readme)
    for link in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (SOURCES / name / link).exists(), link


def test_matmul_is_right_and_copies_nothing(device: Device) -> None:
    guest = run("matmul", "192", device=device)
    out = guest.stdout.decode()
    assert re.search(r"check   192 of 192 rows, largest relative error \d\.\de-\d+: right", out)
    assert f"device  {device.info.name}" in out
    assert guest.ledger.copied == 0 or device.info.mode is Mode.STAGED


@pytest.mark.parametrize("size", ["1", "2", "33"])
def test_matmul_of_odd_sizes(device: Device, size: str) -> None:
    assert "right" in run("matmul", size, device=device).stdout.decode()


@pytest.mark.parametrize("args", [["0"], ["-1"], ["x"], ["16385"], ["1", "2"]])
def test_matmul_says_how_it_is_used(args: list[str]) -> None:
    assert b"usage: matmul [SIZE]" in run("matmul", *args, status=2).stderr


def test_matmul_notices_a_wrong_answer() -> None:
    """A device that is wrong in one element of 4096."""
    from nocopy.device.reference import ReferenceDevice

    class Wrong(ReferenceDevice):
        def play(self, program: object, *, timeout: float | None = None, then: object = None) -> None:
            super().play(program, timeout=timeout)
            out = int(program.tape.records[0]["operands"][0]["offset"])
            np.frombuffer(guest_bytes(program), np.float32, 4096, out)[1234] += 1e-3

    def guest_bytes(program: object) -> memoryview:
        from nocopy.tape import Space

        return memoryview(program.spaces[Space.GUEST].array())

    assert b"WRONG" in run("matmul", "64", device=Wrong(), status=1).stdout


def test_matmul_that_does_not_fit_says_so() -> None:
    guest = run("matmul", "1024", status=1, limits=Limits(memory=2**20))
    assert b"do not fit" in guest.stderr


def test_matmul_passes_on_why_the_host_refuses() -> None:
    guest = run("matmul", "64", status=1, compute_limits=ComputeLimits(work=1000))
    assert b"matmul: error -7: record 0 (matmul): the tape costs more than 1000" in guest.stderr


def test_mlp_reads_as_well_as_numpy(device: Device) -> None:
    guest = run("mlp", device=device)
    out = guest.stdout.decode()
    predicted, labels = numpy_mlp()
    accuracy = float((predicted == labels).mean())
    assert accuracy >= 0.95
    assert f"accuracy {accuracy:.4f} on 450 pictures it has never seen" in out
    first, fooled = re.findall(r"(?:read \d, is \d\s*)+", out)
    assert pairs(first) == list(zip(predicted[:6], labels[:6], strict=True))
    wrong = np.flatnonzero(predicted != labels)[:6]
    assert pairs(fooled) == list(zip(predicted[wrong], labels[wrong], strict=True))


def pairs(line: str) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in re.findall(r"read (\d), is (\d)", line)]


def numpy_mlp() -> tuple[np.ndarray, np.ndarray]:
    """The same classifier in NumPy: predictions and labels."""
    raw = (SOURCES / "mlp" / "digits.bin").read_bytes()
    sizes = [(64, 64), (64,), (64, 10), (10,)]
    at, weights = 0, []
    for shape in sizes:
        weights.append(np.frombuffer(raw, "<f4", int(np.prod(shape)), at).reshape(shape))
        at += weights[-1].nbytes
    pictures = np.frombuffer(raw, np.uint8, 450 * 64, at).reshape(450, 64)
    labels = np.frombuffer(raw, np.uint8, 450, at + pictures.size)
    w1, b1, w2, b2 = weights
    return np.argmax(np.maximum(pictures / 16 @ w1 + b1, 0) @ w2 + b2, -1), labels


def drawn(pixels: np.ndarray, width: int) -> np.ndarray:
    """The image example in NumPy, in f64."""
    height = max(1, int(pixels.shape[0] * width / pixels.shape[1] + 0.5))
    canvas = np.pad(pixels.astype(float), ((4, 4), (4, 4), (0, 0)), mode="edge")
    taps = np.exp(-0.5 * np.arange(-3, 4) ** 2)
    taps /= taps.sum()
    soft = sum(t * canvas[:, i : canvas.shape[1] - 6 + i] for i, t in enumerate(taps))
    soft = sum(t * soft[i : soft.shape[0] - 6 + i] for i, t in enumerate(taps))
    grey = soft @ [0.299, 0.587, 0.114]
    sx = (
        (grey[:, 2:] - grey[:, :-2])[:-2]
        + 2 * (grey[:, 2:] - grey[:, :-2])[1:-1]
        + (grey[:, 2:] - grey[:, :-2])[2:]
    )
    gy = grey[2:] - grey[:-2]
    sy = gy[:, :-2] + 2 * gy[:, 1:-1] + gy[:, 2:]
    drawing = soft[1:-1, 1:-1] * np.exp(-np.hypot(sx, sy) / 90)[..., None]

    def axis(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, n - 1), at - low

    y0, y1, fy = axis(drawing.shape[0], height)
    x0, x1, fx = axis(drawing.shape[1], width)
    fx, fy = fx[:, None], fy[:, None, None]
    rows = drawing[:, x0] * (1 - fx) + drawing[:, x1] * fx
    return np.clip(np.rint(rows[y0] * (1 - fy) + rows[y1] * fy), 0, 255)


def ppm(pixels: np.ndarray) -> bytes:
    return b"P6\n# made for a test\n%d %d\n255\n" % pixels.shape[1::-1] + pixels.tobytes()


@pytest.mark.parametrize(("size", "width"), [((37, 52), None), ((1, 1), 3), ((5, 64), 64), ((40, 9), 2)])
def test_image_draws_what_numpy_draws(
    device: Device, tmp_path: Path, size: tuple[int, int], width: int | None
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    (tmp_path / "in.ppm").write_bytes(ppm(pixels))
    dirs = [Dir(tmp_path, "/pictures", writable=True)]
    more = [str(width)] if width else []
    guest = run("image", "/pictures/in.ppm", "/pictures/out.ppm", *more, device=device, dirs=dirs)
    assert guest.ledger.copied == 0 or device.info.mode is Mode.STAGED
    want = drawn(pixels, width or (size[1] + 1) // 2)
    header = b"P6\n%d %d\n255\n" % want.shape[1::-1]
    raw = (tmp_path / "out.ppm").read_bytes()
    assert raw.startswith(header)
    got = np.frombuffer(raw[len(header) :], np.uint8).reshape(want.shape)
    assert np.abs(got - want).max() <= 1  # f32 and f64 may round to neighbours


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", b"not a binary PPM"),
        (b"P5\n1 1\n255\n\0", b"not a binary PPM"),
        (b"P6\n1 1\n65535\n" + bytes(6), b"not a binary PPM"),
        (b"P6\n99999999999 1\n255\n", b"not a binary PPM"),
        (b"P6\n-1 1\n255\n", b"not a binary PPM"),
        (b"P6\n4 4\n255\n" + bytes(47), b"ends early"),
        (b"P6\n# " + b"x" * 10000, b"not a binary PPM"),
    ],
)
def test_image_refuses_broken_files(tmp_path: Path, content: bytes, message: bytes) -> None:
    (tmp_path / "in.ppm").write_bytes(content)
    guest = run("image", "/in.ppm", "/out.ppm", status=1, dirs=[Dir(tmp_path, "/")])
    assert message in guest.stderr


def test_image_says_how_it_is_used_and_what_it_cannot_open() -> None:
    assert b"usage: image" in run("image", status=2).stderr
    assert b"cannot open nowhere.ppm" in run("image", "nowhere.ppm", "out.ppm", status=1).stderr


def test_image_passes_on_why_the_host_refuses(tmp_path: Path) -> None:
    (tmp_path / "in.ppm").write_bytes(ppm(np.zeros((64, 64, 3), np.uint8)))
    limits = ComputeLimits(scratch=4096)
    guest = run("image", "/in.ppm", "/o.ppm", status=1, dirs=[Dir(tmp_path, "/")], compute_limits=limits)
    assert b"of space scratch, which has 4096" in guest.stderr


def image_command(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nocopy.examples.image", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_picture_is_drawn_from_the_command_line(tmp_path: Path) -> None:
    from PIL import Image

    done = image_command(SOURCES / "image" / "sample.png", tmp_path / "out.png", "--device", "reference")
    assert done.returncode == 0, done.stderr
    assert "0 bytes copied" in done.stdout
    got = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    want = np.asarray(Image.open(SOURCES / "image" / "drawing.png")).astype(int)
    assert np.abs(got - want).max() <= 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.png", "out.png"], "nowhere.png"),
        ([__file__, "out.png"], "cannot identify"),
        ([SOURCES / "image" / "sample.png", "out.unknown"], "out.unknown"),
        ([SOURCES / "image" / "sample.png", "/nowhere/out.png"], "/nowhere/out.png"),
        ([SOURCES / "image" / "sample.png", "out.png", "--device", "abacus"], "abacus"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(args: list[str | Path], message: str) -> None:
    done = image_command(*args[:2], *(args[2:] or ["--device", "reference"]))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
