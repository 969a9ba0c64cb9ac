"""A real object store with the S3 protocol on the loopback: OpenStack Swift, from Debian's python3-swift.

One disk, one copy of everything; four processes: accounts, containers, objects, the proxy that speaks S3.
Debian's own Python runs them, so this file uses nothing but Swift and the standard library there.

    python3 object_server.py serve FOLDER KIND     one of the processes
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

PYTHON = "/usr/bin/python3"
KINDS = ("account", "container", "object", "proxy")
USER, PASSWORD, BUCKET = "test:tester", "testing", "agents"
START_SECONDS = 60  # four Python programs on a busy machine

CONF = """[DEFAULT]
swift_dir = {folder}
devices = {folder}/disk
mount_check = false
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
log_custom_handlers = object_server.log_to
[pipeline:main]
pipeline = {pipeline}
[app:{kind}-server]
use = egg:swift#{kind}
account_autocreate = true
"""
FILTERS = ("catch_errors", "cache", "s3api", "tempauth", "copy", "slo", "dlo")
SETTINGS = {"cache": "memcache_servers = 127.0.0.1:9\n", "tempauth": "user_test_tester = testing .admin\n"}


def installed() -> bool:
    if not os.path.exists(PYTHON):
        return False
    return subprocess.run([PYTHON, "-c", "import swift"], capture_output=True, check=False).returncode == 0


def log_to(conf, name, log_to_console, log_route, fmt, logger, adapted_logger):
    """Swift calls this: its log goes to stderr, not to a syslog that may not be there."""
    import logging

    logger.addHandler(logging.StreamHandler(sys.stderr))


def prepare(folder: Path, ports: dict[str, int]) -> None:
    """Write the configuration and the rings: which partition of the names lies on which disk."""
    from swift.common.ring import RingBuilder

    (folder / "disk/d1").mkdir(parents=True)
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = tests\n")
    import pwd

    user = pwd.getpwuid(os.getuid()).pw_name
    for kind, port in ports.items():
        pipeline = " ".join((*FILTERS, "proxy-server")) if kind == "proxy" else f"{kind}-server"
        conf = CONF.format(folder=folder, port=port, user=user, kind=kind, pipeline=pipeline)
        if kind == "proxy":
            used = {"cache": "memcache"}
            for name in FILTERS:
                conf += f"[filter:{name}]\nuse = egg:swift#{used.get(name, name)}\n{SETTINGS.get(name, '')}"
        else:
            ring = RingBuilder(2, 1, 0)  # 4 partitions, 1 copy
            place = {"region": 1, "zone": 1, "device": "d1", "weight": 1, "replication_port": port}
            ring.add_dev({"id": 0, "ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", **place})
            ring.rebalance()
            ring.get_ring().save(str(folder / f"{kind}.ring.gz"))
        (folder / f"{kind}.conf").write_text(conf)


def serve(folder: Path, kind: str) -> int:
    from swift.common import utils
    from swift.common.wsgi import run_wsgi

    utils.SWIFT_CONF_FILE = str(folder / "swift.conf")  # read before the configuration says where it is
    return run_wsgi(str(folder / f"{kind}.conf"), f"{kind}-server")


class ObjectServer:
    """Runs while it is open; `environment` is what a client needs to reach the bucket s3://agents."""

    def __init__(self, folder: Path) -> None:
        ports = {kind: free_port() for kind in KINDS}
        self.endpoint = f"http://127.0.0.1:{ports['proxy']}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": PASSWORD,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }
        self.log = folder / "log"
        here = Path(__file__)
        settings = {"PATH": os.environ["PATH"], "PYTHONPATH": str(here.parent), "PYTHONWARNINGS": "ignore"}
        script = f"import object_server as s, pathlib; s.prepare(pathlib.Path({str(folder)!r}), {ports})"
        subprocess.run([PYTHON, "-c", script], env=settings, check=True)
        with open(self.log, "wb") as log:
            self.processes = [
                subprocess.Popen([PYTHON, here, "serve", folder, kind], env=settings, stdout=log, stderr=log)
                for kind in KINDS
            ]
        try:
            for kind, port in ports.items():
                self.wait_for(kind, port)
        except BaseException:
            self.close()
            raise

    def wait_for(self, kind: str, port: int) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"the {kind} server does not answer:\n{self.log.read_text()[-3000:]}")

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[2]), sys.argv[3]))
