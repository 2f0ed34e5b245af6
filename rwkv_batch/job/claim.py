"""The claim of a shard: the file in the state folder that says which process serves it, and that this process lives.

A claim only saves work. The commit protocol keeps results right, also where two processes serve one shard.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone

from .output.storage import Storage
from .plan import Shard

STEM, EXTENSION = "claim", "json"
NAME = re.compile(rf"{STEM}(?:-(\d+)-of-(\d+))?\.{EXTENSION}")
DEAD_STATES = "ZXx"
"""States in /proc/PID/stat of a process that has ended and whose parent has not asked how."""


@dataclass(frozen=True)
class Claim:
    """The content of a claim file.

    Args:
        host: name of the machine.
        boot: random number of the machine's last start; "" where the system has none.
        namespace: of the process numbers, for containers; "" where the system has none.
        pid: number of the process.
        started: when the process started, in the system's ticks since the machine's start; 0 where it does not tell. A
            later process with the same number has another one.
        run: random number of the run, the same as in its log.
        beat: how often the claim was renewed.
        since: when the run claimed the shard, by the clock of its machine: "2030-01-31 12:00:00 UTC".
        renewed: when it renewed the claim last.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: int
    run: str
    beat: int
    since: str
    renewed: str

    @classmethod
    def of(cls, content: bytes) -> Claim | None:
        """Reads the content of a claim file. Returns None where it is damaged or another file's."""
        try:
            found = json.loads(content)
            values = {field.name: found[field.name] for field in fields(cls)}
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        numbers = {"pid", "started", "beat"}
        kinds = all(type(value) is (int if name in numbers else str) for name, value in values.items())
        return cls(**values) if kinds and values["pid"] > 0 else None

    def encoded(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    def renewal(self) -> Claim:
        """Returns this claim, renewed now."""
        return replace(self, beat=self.beat + 1, renewed=_now())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"


class Machine:
    """This machine, as claims name it, and its processes.

    Claims of another machine, of this one before its last start, and of containers with process numbers of their own
    say nothing about a process here.
    """

    def __init__(self) -> None:
        self.host = socket.gethostname()
        self.boot = _text("/proc/sys/kernel/random/boot_id").strip()
        try:
            self.namespace = os.readlink("/proc/self/ns/pid")
        except OSError:
            self.namespace = ""

    def claim(self, run: str) -> Claim:
        """Returns a new claim of this process."""
        pid, now = os.getpid(), _now()
        started = self.started(pid) or 0
        return Claim(self.host, self.boot, self.namespace, pid, started, run, beat=0, since=now, renewed=now)

    def is_here(self, claim: Claim) -> bool:
        """Whether the claim's process is, or was, one of this machine."""
        return (claim.host, claim.boot, claim.namespace) == (self.host, self.boot, self.namespace)

    def has_ended(self, claim: Claim) -> bool:
        """Whether the claim's process is known to have ended. False also where this machine cannot know."""
        if not self.is_here(claim):
            return False
        started = self.started(claim.pid)
        return started is None or (0 not in (started, claim.started) and started != claim.started)

    def started(self, pid: int) -> int | None:
        """When a process started, in ticks since the machine's start; 0 where that is not known, None if it has ended.

        A process that has ended counts as such also while its parent has not asked how.
        """
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return None
        except PermissionError:  # another user's
            pass
        facts = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if not facts:
            return 0
        return None if facts[0] in DEAD_STATES else int(facts[19])


def read_content(storage: Storage, path: str) -> bytes | None:
    """Returns the content of a file; None where it is not there."""
    with suppress(FileNotFoundError, NotADirectoryError), storage.open(path) as file:
        return file.read()
    return None


def read_claims(storage: Storage, state: str) -> Iterator[tuple[Shard, Claim]]:
    """Yields the shards of a job that are claimed, with their claims. Their processes may have ended.

    Args:
        state: the state folder.
    """
    for name in storage.list(state):
        if match := NAME.fullmatch(name):
            shard = Shard(int(match[1] or 0), int(match[2] or 1))
            content = read_content(storage, os.path.join(state, name))
            if shard.index < shard.count and content and (claim := Claim.of(content)):
                yield shard, claim


def _text(path: str) -> str:
    """Returns the text of a file of the system; "" where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
