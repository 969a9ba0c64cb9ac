"""`nocopy devices`: one line for each device."""

from __future__ import annotations

from nocopy.cli.choices import Json


def devices(*, json: Json = False) -> int:
    """List the devices: which are there, what they are, and how each reaches the guest's memory."""
    from nocopy.cli.doctor import device_table
    from nocopy.cli.output import console, errors, print_json
    from nocopy.cli.probe import probe_all

    with errors().status("trying the devices"):
        found = probe_all()
    if json:
        print_json({"devices": [status.as_dict() for status in found]})
    else:
        console().print(device_table(found))
    return 0
