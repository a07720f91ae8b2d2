"""A web server on loopback that fails on purpose, and a canary that must never be reached. Both end with their `with` block.

    with FaultServer(script) as server: …      script(Seen(host, path, attempt)) → Answer, or None for 404
    with Canary() as canary: …                 canary.hits counts connections

Faults are chosen by a hash of (seed, path, attempt), so a run repeats exactly; `server.log` has every request in order of arrival.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LIFE = 600.0  # seconds after which a server that nobody closed lets go of its requests


@dataclass(frozen=True)
class Seen:
    """One request: the Host header, the path with its query, how often this path of this host was asked before, and all header fields."""

    host: str
    path: str
    attempt: int
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What is sent. `how`: whole; short (ends after half the body); reset (RST before a byte); stall (half the body, then silence);
    break (half the body, then RST); drip and drip_head (a byte every 0.2 s); endless (a body without end); chunked; raw (`body` is the whole
    answer). A whole body is sent `times` times, so that a server of gigabytes holds one block."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    how: str = "whole"
    times: int = 1


Script = Callable[[Seen], Answer | None]


def ranged(seen: Seen, body: bytes, how: str = "whole", tag: str = '"v1"', **headers: str) -> Answer:
    """A file as a good server gives it: the rest that was asked for, if it is still that file, else the whole."""
    said = {"ETag": tag, "Accept-Ranges": "bytes", **headers}
    asked = seen.fields.get("Range", "")
    if asked and seen.fields.get("If-Range") in (None, tag):
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        return Answer(body[start:], 206, {**said, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}, how)
    return Answer(body, headers=said, how=how)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultServer
    timeout = 30

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0]
        with self.server.lock:
            attempt = self.server.seen[host, self.path]
            self.server.seen[host, self.path] += 1
            self.server.log.append((host, self.path))
            self.server.agents.add(self.headers.get("User-Agent", ""))
        answer = self.server.script(Seen(host, self.path, attempt, dict(self.headers.items())))
        with contextlib.suppress(OSError):
            self._send(answer or Answer(b"no", 404))

    def _send(self, a: Answer) -> None:
        if a.how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        if a.how == "raw":
            self.wfile.write(a.body)
            self.close_connection = True
            return
        head = f"HTTP/1.1 {a.status} x\r\n" + "".join(f"{k}: {v}\r\n" for k, v in a.headers.items())
        if a.how == "chunked":
            pieces = [a.body[i : i + 1000] for i in range(0, len(a.body), 1000)]
            chunked = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\nTrailer: x\r\n\r\n"
            self.wfile.write(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunked)
            return
        if a.how != "endless":
            head += f"Content-Length: {len(a.body) * a.times}\r\n"
        if a.how == "drip_head":
            self._drip((head + "X: " + "x" * 100_000).encode())
            return
        self.wfile.write(head.encode() + b"\r\n")
        if a.how == "whole":
            for _ in range(a.times):
                self.wfile.write(a.body)
            return
        self.close_connection = True
        if a.how == "drip":
            self._drip(a.body)
        elif a.how == "endless":
            while not self.server.over.is_set():
                self.wfile.write(b"\0" * 65_536)
        else:
            self.wfile.write(a.body[: len(a.body) // 2])
            if a.how == "stall":
                self.server.over.wait(LIFE)
            elif a.how == "break":
                time.sleep(0.05)  # an RST overtakes what the other side has not read yet
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    def _drip(self, data: bytes) -> None:
        for i in range(len(data)):
            if self.server.over.wait(0.2):
                return
            self.wfile.write(data[i : i + 1])


class FaultServer(ThreadingHTTPServer):
    """Serves until its block ends; then every handler that still stalls is released."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, script: Script, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), _Handler)
        self.script, self.lock, self.over = script, threading.Lock(), threading.Event()
        self.log: list[tuple[str, str]] = []
        self.seen: Counter[tuple[str, str]] = Counter()
        self.agents: set[str] = set()
        self.address, self.port = address, self.server_address[1]

    @property
    def pair(self) -> tuple[str, int]:
        """What a policy has to allow for this server to be reached."""
        return self.address, self.port

    def url(self, path: str, host: str | None = None) -> str:
        return f"http://{host or self.address}:{self.port}{path}"

    def asked(self, path: str) -> int:
        """How often this path was asked for, at any host."""
        return sum(p == path for _, p in self.log)

    def handle_error(self, request: object, client_address: object) -> None:
        pass

    def __enter__(self) -> FaultServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()


class Canary:
    """Stands for everything that must not be reached: a port on every loopback address, IPv4 and IPv6, that counts who connects."""

    def __init__(self) -> None:
        self.hits = 0
        self._socket = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) if _has_v6() else socket.create_server(("", 0))
        self.port = self._socket.getsockname()[1]

    def __enter__(self) -> Canary:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.hits += 1
                connection.close()

    def __exit__(self, *exc: object) -> None:
        time.sleep(0.05)  # a connection on its way still counts
        self._socket.close()


def _has_v6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


FAULTS = ("reset", "500", "503", "429", "short", "stall")


def chance(seed: int, *what: object) -> float:
    """A number in [0, 1) that follows from its arguments."""
    text = "/".join(map(str, (seed, *what)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def faulty(script: Script, share: float = 0.2, seed: int = 0, wait: str = "0") -> Script:
    """`script`, but this share of requests meets a passing fault instead. robots.txt files stay well."""

    def run(seen: Seen) -> Answer | None:
        if seen.path == "/robots.txt" or chance(seed, seen.path, seen.attempt) >= share:
            return script(seen)
        kind = FAULTS[int(chance(seed, "kind", seen.path, seen.attempt) * len(FAULTS))]
        if kind.isdigit():
            return Answer(b"later", int(kind), {"Retry-After": wait} if kind == "429" else {})
        return replace(script(seen) or Answer(b"", 404), how=kind)

    return run
