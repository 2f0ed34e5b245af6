"""An HTTP proxy before a store, which delays, drops, duplicates, cuts and refuses requests as a schedule says."""

from __future__ import annotations

import random
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

REFUSALS = {
    301: "PermanentRedirect",
    403: "AccessDenied",
    409: "OperationAborted",
    500: "InternalError",
    501: "NotImplemented",
    503: "SlowDown",
}


@dataclass
class Request:
    """A request: its method, its target, its headers in lower case, and its bytes."""

    method: str
    target: str
    headers: dict[str, str]
    head: bytes
    body: bytes

    @property
    def is_create(self) -> bool:
        return "if-none-match" in self.headers


Schedule = Callable[[Request], str | None]
"""Request → the fault that it meets, or None.

"delay"; a number, the status that is answered in place of the store's; "done 500", the same after the store has done
it; "drop" and "done drop", no answer; "cut", a reset in the middle of the request's body; "cut answer", a reset in the
middle of the answer; "twice", the store gets it two times; "no condition", the store does not see If-None-Match.
"""

FAULTS = ("delay", "500", "503", "409", "done 500", "drop", "done drop", "cut", "cut answer", "twice")


def schedule(seed: int, share: float = 0.25, most_in_a_row: int = 2) -> Schedule:
    """Draws faults for this share of the requests, and never for more than so many in a row."""
    dice = random.Random(seed)
    lock = threading.Lock()
    in_a_row = 0

    def fault(request: Request) -> str | None:
        nonlocal in_a_row
        with lock:
            drawn = dice.choice(FAULTS) if dice.random() < share and in_a_row < most_in_a_row else None
            if drawn == "409" and request.method != "PUT":
                drawn = "503"
            in_a_row = 0 if drawn is None else in_a_row + 1
            return drawn

    return fault


class FaultProxy:
    """A proxy; `schedule` may be replaced at any time.

    Attributes:
        port: where it listens.
        requests: what it has received, as "METHOD target".
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.schedule: Schedule = lambda _: None
        self.requests: list[str] = []
        proxy = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with suppress(OSError, EOFError):
                    while proxy.serve(self):
                        pass

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None: ...

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]

    def serve(self, client: Any) -> bool:
        """Answers one request. Returns False where the connection is closed."""
        head, headers = read_head(client.rfile)
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        size = int(headers.get("content-length", 0))
        request = Request(method, target, headers, head, b"")
        self.requests.append(f"{method} {target}")
        fault = self.schedule(request)
        if fault == "cut":
            client.rfile.read(size // 2)
            return reset(client.connection)
        request.body = client.rfile.read(size)
        if fault == "drop":
            return reset(client.connection)
        if fault == "delay":
            time.sleep(0.05)
        if fault is not None and fault.isdigit():
            client.wfile.write(refusal(int(fault)))
            return True
        answer = self.forward(request, without_condition=fault == "no condition")
        if fault == "twice":
            answer = self.forward(request)
        if fault == "done 500":
            answer = refusal(500)
        if fault == "done drop":
            return reset(client.connection)
        if fault == "cut answer":
            client.wfile.write(answer[: len(answer) - max(1, len(answer) // 4)])
            client.wfile.flush()
            return reset(client.connection)
        client.wfile.write(answer)
        return True

    def forward(self, request: Request, *, without_condition: bool = False) -> bytes:
        """Returns the store's answer to a request."""
        lines = request.head.rstrip(b"\r\n").split(b"\r\n")
        dropped = [b"connection:", *([b"if-none-match:"] if without_condition else [])]
        lines = [line for line in lines if not line.lower().startswith(tuple(dropped))]
        with socket.create_connection(("127.0.0.1", self.target)) as store, store.makefile("rb") as answer:
            store.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + request.body)
            head, headers = read_head(answer)
            is_empty = request.method == "HEAD" or head.split(b" ")[1] in (b"204", b"304")
            # Not up to the end of the stream: this server waits 10 ms before it closes a connection.
            size = headers.get("content-length")
            body = b"" if is_empty else answer.read() if size is None else answer.read(int(size))
        kept = [line for line in head.rstrip(b"\r\n").split(b"\r\n") if not line.lower().startswith(b"connection:")]
        if size is None:
            kept.append(b"Content-Length: %d" % len(body))
        return b"\r\n".join([*kept, b"", b""]) + body


def read_head(file: Any) -> tuple[bytes, dict[str, str]]:
    lines = [file.readline()]
    if not lines[0]:
        raise EOFError
    while lines[-1] not in (b"\r\n", b""):
        lines.append(file.readline())
    pairs = (line.decode().partition(":")[::2] for line in lines[1:-1])
    return b"".join(lines), {name.lower(): value.strip() for name, value in pairs}


def refusal(status: int) -> bytes:
    code = REFUSALS[status]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code} of the test</Message></Error>".encode()
    return b"HTTP/1.1 %d %s\r\nContent-Length: %d\r\n\r\n%s" % (status, code.encode(), len(body), body)


def reset(connection: socket.socket) -> bool:
    """Closes a connection in a way that its other end sees as a failure."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    return False


@contextmanager
def fault_proxy(target: int) -> Iterator[FaultProxy]:
    """Gives a proxy before the server at a port, which ends with the block."""
    proxy = FaultProxy(target)
    thread = threading.Thread(target=proxy.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.server.shutdown()
        proxy.server.server_close()
        thread.join()
