"""A store for tests: an S3 server behind a fault proxy, a bucket in it, and the environment that leads there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from rwkv_batch.job.output import object_storage
from rwkv_batch.job.output.object_storage import ObjectStorage
from rwkv_batch.object_stores import client

from .fault_proxy import FaultProxy, fault_proxy
from .s3_server import request, s3_server

SECRET = "wJalrXUtnFEMI/K7MDENG"
NUMBERS = itertools.count()


@dataclass
class Bucket:
    """A bucket.

    Args:
        name: of the bucket.
        server: the port of the server, without faults.
        proxy: what clients talk to.
        environment: variables that lead a process there.
    """

    name: str
    server: int
    proxy: FaultProxy
    environment: dict[str, str]

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def objects(self, folder: str = "") -> dict[str, bytes]:
        """Key below a folder → content, without faults."""
        schedule, self.proxy.schedule = self.proxy.schedule, lambda _: None
        try:
            return dict(self._objects(folder))
        finally:
            self.proxy.schedule = schedule

    def _objects(self, folder: str) -> Iterator[tuple[str, bytes]]:
        storage = ObjectStorage()
        pending = [f"{self.url}/{folder}".rstrip("/")]
        prefix = len(f"{pending[0]}/")
        while pending:
            parent = pending.pop()
            for name in storage.list(parent):
                path = f"{parent}/{name}"
                try:
                    with storage.open(path) as file:
                        yield path[prefix:], file.read()
                except FileNotFoundError:
                    pending.append(path)

    def uploads(self) -> int:
        """The number of multipart uploads that are neither complete nor aborted."""
        return request(self.server, "GET", f"{self.name}?uploads").count(b"<Upload>")


@contextmanager
def stores() -> Iterator[Any]:
    """Gives a function that makes an empty bucket."""
    with s3_server() as server, fault_proxy(server) as proxy:

        def make() -> Bucket:
            proxy.schedule = lambda _: None
            proxy.requests.clear()
            name = f"bucket-{next(NUMBERS)}"
            request(server, "PUT", name)
            environment = {
                "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
            }
            return Bucket(name, server, proxy, environment)

        yield make


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Shortens all waits between tries."""
    backoff = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5), "base": 2}
    patch.setattr(client, "RETRIES", {**client.RETRIES, "backoff": backoff})
    patch.setattr(object_storage, "FIRST_WAIT", 0.001)
    patch.setattr(object_storage, "LONGEST_WAIT", 0.01)


class Crashed(BaseException):
    """Ends a run as a kill would: nothing is written afterwards."""


class CrashingStorage(ObjectStorage):
    """Dies before the k-th change of the store, and then changes nothing any more."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.left = k

    def step(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Crashed

    def _call(self, verb: str, path: str, act: Any, *arguments: Any, **options: Any) -> Any:
        if verb != "read":
            self.step()
        return super()._call(verb, path, act, *arguments, **options)
