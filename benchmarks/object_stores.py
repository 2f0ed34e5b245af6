"""Compares clients of object stores, obstore and s3fs, with moto's S3 server on this machine.

python -m benchmarks.object_stores [--out FILE]: needs the packages of the extra `test`, and s3fs. Each client works
in a process of its own, one request at a time, so the server's time is in each figure; `cpu_seconds` is the client's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

SMALL, SMALL_BYTES = 1000, 4096
LARGE, LARGE_BYTES = 10, 32 << 20
ROUNDS, WRITERS = 20, 8
"""Rounds in which so many threads create one object at once."""
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


class Obstore:
    """The client obstore."""

    def __init__(self, bucket: str) -> None:
        import obstore
        from obstore.store import S3Store

        self.library: Any = obstore
        self.store = S3Store(bucket, client_options={"allow_http": True, "timeout": "300s"})

    def put(self, name: str, data: bytes) -> None:
        self.library.put(self.store, name, data, use_multipart=False)

    def get(self, name: str) -> bytes:
        return bytes(self.library.get(self.store, name).bytes())

    def create(self, name: str, data: bytes) -> bool:
        try:
            self.library.put(self.store, name, data, mode="create")
        except self.library.exceptions.AlreadyExistsError:
            return False
        return True


class S3fs:
    """The client s3fs."""

    def __init__(self, bucket: str) -> None:
        import s3fs

        self.bucket = bucket
        self.files: Any = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"], use_listings_cache=False)

    def put(self, name: str, data: bytes) -> None:
        self.files.pipe_file(f"{self.bucket}/{name}", data)

    def get(self, name: str) -> bytes:
        return bytes(self.files.cat_file(f"{self.bucket}/{name}"))

    def create(self, name: str, data: bytes) -> bool:
        try:
            self.files.pipe_file(f"{self.bucket}/{name}", data, mode="create")
        except FileExistsError:
            return False
        return True


CLIENTS: dict[str, Callable[[str], Any]] = {"obstore": Obstore, "s3fs": S3fs}


def timed(act: Callable[[], object]) -> dict[str, float]:
    """Returns the seconds of an action, and the processor seconds of this process in it."""
    start, cpu = time.perf_counter(), time.process_time()
    act()
    return {
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
    }


def peak_bytes() -> int:
    """Returns the largest memory that this process has held."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:"))


def measure(name: str, bucket: str) -> dict[str, Any]:
    """Measures one client in this process. Every byte that is read is compared."""
    made: list[Any] = []
    found: dict[str, Any] = {"start": timed(lambda: made.append(CLIENTS[name](bucket)))}
    (client,) = made
    for kind, count, size in (("small", SMALL, SMALL_BYTES), ("large", LARGE, LARGE_BYTES)):
        data = os.urandom(size)

        def put(kind: str = kind, count: int = count, data: bytes = data) -> None:
            for index in range(count):
                client.put(f"{name}/{kind}/{index}", data)

        def get(kind: str = kind, count: int = count, data: bytes = data) -> None:
            for index in range(count):
                assert client.get(f"{name}/{kind}/{index}") == data

        found[f"put {kind}"], found[f"get {kind}"] = timed(put), timed(get)
    right = 0
    for turn in range(ROUNDS):
        path = f"{name}/created/{turn}"
        with ThreadPoolExecutor(WRITERS) as pool:
            told = list(pool.map(lambda index, path=path: client.create(path, b"%d" % index), range(WRITERS)))
        right += sum(told) == 1 and int(client.get(path)) == told.index(True)
    return {**found, "created_by_one": f"{right} of {ROUNDS}", "peak_bytes": peak_bytes()}


@contextmanager
def server() -> Iterator[str]:
    """Runs an S3 server with an empty bucket. Yields the bucket's address, to which the environment leads."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT")).close()
        environment = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": address,
        }
        with patch.dict(os.environ, environment):
            yield "s3://bucket"
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="FILE", help="write the figures there as JSON")
    parser.add_argument("--client", choices=CLIENTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(measure(options.client, "bucket")))
        return
    results = {}
    with server():
        for name in CLIENTS:
            command = [sys.executable, "-m", "benchmarks.object_stores", "--client", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results[name] = json.loads(done.stdout)
    text = json.dumps(results, indent=1)
    print(text)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
