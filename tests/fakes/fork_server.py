"""Processes that begin with this package imported: forks of a server, in place of the start of an interpreter.

To import torch takes more than a second of a core, and a test of processes starts many of them.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from rwkv_batch.process import python_command

NUM_FILES = 3
MOST_BYTES = 1 << 20


def main(path: str) -> None:
    """The program of the server. It ends when its standard input ends.

    Args:
        path: of the socket where it listens.
    """
    import rwkv_batch.llm  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that `watch` runs in
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
        client, _ = listener.accept()
        if not os.fork():
            listener.close()
            watch(client)
        client.close()


def watch(client: socket.socket) -> None:
    """Starts a process, tells its number, waits for its end, and tells its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, files, _, _ = socket.recv_fds(client, MOST_BYTES, NUM_FILES)
    watcher = os.getpid()
    pid = os.fork()
    if not pid:
        client.close()
        become(files, watcher, **json.loads(request))
    for file in files:
        os.close(file)
    client.sendall(struct.pack("i", pid))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    client.sendall(struct.pack("i", code))
    os._exit(0)


def become(files: Sequence[int], parent: int, client: int, command: list[str], environment: dict[str, str]) -> None:
    """Runs the program of a command `python -c CODE ARGUMENT…`, in which `parent` takes the place of the client."""
    os.setsid()
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    os.environ.clear()
    os.environ.update(environment)
    _, _, code, *arguments = command
    sys.argv = ["-c", *(str(parent) if argument == str(client) else argument for argument in arguments)]
    exec(code, {"__name__": "__main__"})
    os._exit(0)


class ForkedProcess:
    """What `MessageProcess` uses of `subprocess.Popen`, for a process of the server."""

    def __init__(self, path: str, command: list[str]) -> None:
        self.returncode: int | None = None
        theirs, mine = os.pipe()
        self.stdin = os.fdopen(mine, "wb")
        mine, also_theirs = os.pipe()
        self.stdout = os.fdopen(mine, "rb")
        request = {"client": os.getpid(), "command": command, "environment": dict(os.environ)}
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        socket.send_fds(self._socket, [json.dumps(request).encode()], [theirs, also_theirs, 2])
        os.close(theirs)
        os.close(also_theirs)
        (self.pid,) = struct.unpack("i", self._socket.recv(4))

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._socket.settimeout(timeout)
            try:
                (self.returncode,) = struct.unpack("i", self._socket.recv(4, socket.MSG_PEEK))
            except TimeoutError as error:
                raise subprocess.TimeoutExpired("the forked process", timeout or 0.0) from error
        return self.returncode


@contextmanager
def forked_processes() -> Iterator[None]:
    """`MessageProcess` starts processes of a server while the block runs."""
    from rwkv_batch import message_process

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = os.path.join(folder, "socket")
        command = python_command(__name__, path)
        # At its end the block waits for the server, and not for the end of its output: processes that a failed test has
        # left hold that open.
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"

            def start(given: list[str], **_: Any) -> ForkedProcess:
                return ForkedProcess(path, given)

            patch.setattr(message_process, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start}))
            try:
                yield
            finally:
                server.kill()
