"""A real S3 server over HTTP on this machine: moto's, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

CODE = """
import sys
from moto import backends
from moto.core import errors
from moto.server import ThreadedMotoServer
# Both are computed anew for each request, which takes a third of the server's time.
names, lookups = [*backends.list_of_moto_modules()], errors.ErrorLookupFactory()
backends.list_of_moto_modules = lambda: names
errors.ErrorLookupFactory = lambda: lookups
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def s3_server() -> Iterator[int]:
    """Gives the port of a server, which ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def request(port: int, method: str, path: str) -> bytes:
    """Makes a request without a client library. Returns the body of the answer."""
    wanted = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", method=method)
    with urllib.request.urlopen(wanted) as answer:
        return answer.read()
