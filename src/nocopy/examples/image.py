"""Draw a picture: Pillow decodes, the guest owns the pixels, the device filters them.

python -m nocopy.examples.image photo.jpg drawing.png [--width 640] [--device cpu]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from nocopy.errors import Error, GuestError, UsageError
from nocopy.interfaces.host import DeviceGuest


def draw(source: Path, target: Path, *, width: int | None = None, device: str = "auto") -> str:
    """Filter a picture file into another one; the formats are Pillow's, by the files' names.

    Args:
        source: the picture.
        target: written.
        width: of the result in pixels; half of the source's when left out.
        device: where to compute.

    Returns:
        What was done, in one line.

    Raises:
        UsageError: Pillow is not installed, or a file cannot be read or written.
        GuestError: the guest could not filter it; the message has its reason.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise UsageError(
            "decoding a picture was asked for; Pillow is not installed. pip install pillow"
        ) from None
    try:
        picture = Image.open(source).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise UsageError(f"the picture {str(source)!r} was to be read: {error}") from None
    out_width = width or (picture.width + 1) // 2
    out_height = max(1, int(picture.height * out_width / picture.width + 0.5))
    with DeviceGuest(Path(__file__).with_name("image.wasm"), device=device) as guest:
        at = guest.call("image_open", picture.width, picture.height, out_width, out_height)
        if not at:
            raise GuestError(
                f"a picture of {picture.width} x {picture.height} was given; it does not fit the guest"
            )
        guest.memory.view((picture.height, picture.width, 3), "u8", at)[:] = np.asarray(picture)
        result = guest.call("image_filter")
        if not result:
            raise GuestError(f"filtering {str(source)!r} was asked for; {guest.last_error}")
        drawing = guest.memory.view((out_height, out_width, 3), "u8", result)
        try:
            Image.fromarray(drawing.numpy()).save(target)
        except (OSError, ValueError) as error:
            raise UsageError(f"the drawing was to be written to {str(target)!r}: {error}") from None
        return (
            f"{source} {picture.width}x{picture.height} -> {target} {out_width}x{out_height}"
            f" on {guest.device.info.name}, {guest.ledger.copied} bytes copied"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run from a command line; returns the exit status: 0 done, 1 failed, 2 usage."""
    parser = argparse.ArgumentParser(prog="python -m nocopy.examples.image", description="Draw a picture.")
    parser.add_argument("source", type=Path, metavar="IN", help="a picture that Pillow can read")
    parser.add_argument("target", type=Path, metavar="OUT", help="the drawing; .png, .jpg, ...")
    parser.add_argument(
        "--width", type=int, help="of the drawing in pixels; half of the picture's unless given"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, vulkan, cuda, metal or reference")
    options = parser.parse_args(arguments)
    if options.width is not None and not 1 <= options.width <= 32768:
        parser.error("--width lies between 1 and 32768")
    try:
        print(draw(options.source, options.target, width=options.width, device=options.device))
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
