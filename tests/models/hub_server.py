"""A hub on the loopback: the part of the Hugging Face hub's protocol that fetching a model uses."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_test"


@dataclass
class Hub:
    """What it has, how it misbehaves, and what it was asked."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commit: str = "c" * 40
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    cuts: list[int] = field(default_factory=list)
    """For each answer with contents, in turn: after how many bytes the connection ends."""
    wrong: bool = False
    """Send other bytes than announced."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """(path, Range) of every request."""
    stalled: threading.Event | None = None
    """Set when an answer stops half-way and stays open, instead of being cut."""
    url: str = ""

    def ranges(self) -> list[str]:
        """The Range of each request for contents."""
        return [asked for path, asked in self.requests if "/resolve/" in path]


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        shared = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shared: Hub

    def log_message(self, *_: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        hub = self.shared
        path = self.path.partition("?")[0]
        hub.requests.append((self.path, self.headers.get("Range", "")))
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path.startswith("/api/models/"):
            repo = path.removeprefix("/api/models/")
            if repo not in hub.repos or (repo in hub.private and not allowed):
                self.fail(401, "RepoNotFound")
            else:
                self.send_json(self.listing(repo))
            return
        repo, _, rest = path.removeprefix("/").partition("/resolve/")
        contents = hub.repos.get(repo, {}).get(rest.partition("/")[2])
        if repo in hub.gated and not allowed:
            self.fail(403, "GatedRepo")
        elif contents is None:
            self.fail(404, "EntryNotFound")
        else:
            self.send_contents(bytes(len(contents)) if hub.wrong else contents)

    def listing(self, repo: str) -> dict[str, Any]:
        siblings = []
        for path, contents in self.shared.repos[repo].items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(contents)}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(contents) + contents).hexdigest()
            if path.endswith((".gguf", ".safetensors")):
                digest = hashlib.sha256(contents).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(contents), "pointerSize": 130}
            siblings.append(entry)
        return {"id": repo, "modelId": repo, "sha": self.shared.commit, "siblings": siblings}

    def send_json(self, value: Any) -> None:
        raw = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def send_contents(self, contents: bytes) -> None:
        hub, asked = self.shared, self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(contents) - 1}/{len(contents)}")
        self.send_header("Content-Length", str(len(contents) - start))
        self.end_headers()
        if not hub.cuts:
            self.wfile.write(contents[start:])
            return
        self.wfile.write(contents[start : start + hub.cuts.pop(0)])
        self.wfile.flush()
        if hub.stalled is not None:
            hub.stalled.set()
            threading.Event().wait(5)
        self.close_connection = True

    def fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
