"""Guest, device and back, by size: a guest that shares its memory beside one whose host copies.

Both run the same program, `guest.c`, which negates a tensor of f32 on the device. A round trip is: the host
calls the guest, the guest writes two elements and submits, the device plays, the guest reads the answer and
returns. The copying host's three functions are Python, some 0.4 us each: below about 64 KiB that, and not the
copies, is what it loses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.resources import files

from nocopy.bench.copying import CopyingHost, carriers
from nocopy.bench.result import Row, row
from nocopy.bench.runner import Progress, silent
from nocopy.bench.timing import interleaved
from nocopy.device.protocol import Device
from nocopy.errors import DeviceError
from nocopy.interfaces.host import DeviceGuest
from nocopy.wasm import Guest, HostFunction

SIZES = tuple(2**i for i in range(10, 29, 2))
SECONDS = 1.0  # for each size, all contenders together


@dataclass(frozen=True)
class RoundTrip:
    """Medians for one size, in seconds. `copied` has each way of copying, the usual one first."""

    nbytes: int
    shared: float
    copied: dict[str, float]


def rows(device: Device, *, progress: Progress = silent) -> list[Row]:
    """Time round trips of 1 KiB to 256 MiB; the unit is µs."""
    found: list[Row] = []
    for trip in round_trips(device, SIZES, progress):
        found += [
            row(case(trip.nbytes), trip.shared * 1e6, "us", peer, t * 1e6) for peer, t in trip.copied.items()
        ]
    return found


def case(nbytes: int) -> str:
    """A size as rows name it: "4 KiB", "16 MiB"."""
    return f"{nbytes >> 10} KiB" if nbytes < 2**20 else f"{nbytes >> 20} MiB"


def round_trips(device: Device, sizes: Sequence[int], progress: Progress = silent) -> list[RoundTrip]:
    """Time them, and check every element afterwards.

    Raises:
        DeviceError: an answer was wrong.
    """
    found: list[RoundTrip] = []
    for i, nbytes in enumerate(sizes):
        progress(case(nbytes), i / len(sizes))
        found.append(_round_trip(device, nbytes))
    return found


def _round_trip(device: Device, nbytes: int) -> RoundTrip:
    with ExitStack() as stack:
        guests: dict[str, Guest] = {"nocopy": stack.enter_context(open_sharing(device))}
        for name, carrier in carriers(device, nbytes).items():
            host = stack.enter_context(closing(CopyingHost(device)))
            host.hold(carrier, nbytes)
            guests[name] = stack.enter_context(open_copying(host))
        for guest in guests.values():
            prepare(guest, nbytes)
        times = interleaved({name: trip(guest) for name, guest in guests.items()}, seconds=SECONDS)
        for name, guest in guests.items():
            check(name, guest, nbytes)
    return RoundTrip(nbytes, times.pop("nocopy"), times)


def open_sharing(device: Device) -> DeviceGuest:
    """Start the program as a guest whose memory is the device's."""
    return DeviceGuest(program("sharing"), device=device)


def open_copying(host: CopyingHost) -> Guest:
    """Start the program as a guest of a host that copies."""
    imports = {
        ("copying", "set_input"): HostFunction(host.set_input, ("u32", "u32"), ("i32",)),
        ("copying", "compute"): HostFunction(host.compute, (), ("i32",)),
        ("copying", "get_output"): HostFunction(host.get_output, ("u32", "u32"), ("i32",)),
    }
    guest = Guest(program("copying"), imports=imports)
    host.address = guest.memory.address
    return guest


def program(name: str) -> bytes:
    """The binary of `guest.c`: "sharing" or "copying"."""
    return files("nocopy.bench").joinpath(f"{name}.wasm").read_bytes()


def prepare(guest: Guest, nbytes: int) -> int:
    """Have the guest fill a tensor; return the tensor's offset in the guest's memory.

    Raises:
        DeviceError: the guest could not.
    """
    offset: int = guest.call("prepare", nbytes)
    if offset < 0:
        raise DeviceError(f"a tensor of {nbytes} bytes was asked for; {said(guest, offset)}")
    return offset


def trip(guest: Guest) -> Callable[[], None]:
    """A function that makes one round trip.

    It raises DeviceError if the answer is wrong.
    """
    call = guest.function("round_trip")

    def round_trip() -> None:
        answer = call()
        if answer:
            why = "its answer is wrong" if answer > 0 else said(guest, answer)
            raise DeviceError(f"a round trip was asked for; {why}")

    return round_trip


def said(guest: Guest, answer: int) -> str:
    """What the guest's last failed call was about, or at least its code."""
    why = guest.last_error if isinstance(guest, DeviceGuest) else ""
    return why or f"the guest answered {answer}"


def check(name: str, guest: Guest, nbytes: int) -> None:
    """Have the guest look at every element after all round trips.

    Raises:
        DeviceError: some are wrong.
    """
    wrong: int = guest.call("wrong")
    if wrong:
        raise DeviceError(f"round trips of {nbytes} bytes were made ({name}); {wrong} elements are wrong")
