"""A run holds the claim of its shard, waits for another run's, and takes over what a run that has ended has left."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from rwkv_batch import Stopped
from rwkv_batch.job import claiming
from rwkv_batch.job.claim import Claim, Machine, read_content
from rwkv_batch.job.claiming import ClaimedShard, Pace
from rwkv_batch.job.folders import Folders
from rwkv_batch.job.output.object_storage import ObjectStorage
from rwkv_batch.job.output.storage import LocalStorage, Storage
from rwkv_batch.job.plan import Shard
from rwkv_batch.job.stopping import StopSignals

from .test_claim import DAMAGED

RARELY = 86_400.0
"""Seconds."""


class FakeMachine(Machine):
    """A machine with this process and process 100.

    Attributes:
        processes: number → when it started.
    """

    def __init__(self) -> None:
        self.host, self.boot, self.namespace = "here", "boot", "pid:[1]"
        self.processes = {os.getpid(): 5, 100: 7}

    def started(self, pid: int) -> int | None:
        return self.processes.get(pid)


@dataclass
class World:
    """A state folder, a machine, and a clock that only sleeps move on.

    Args:
        events: what happens while others sleep: the time, in seconds, and a function.
    """

    storage: Storage
    folders: Folders
    machine: FakeMachine = field(default_factory=FakeMachine)
    stop: StopSignals = field(default_factory=lambda: StopSignals(is_command=True))
    now: float = 0.0
    events: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    @property
    def path(self) -> str:
        return self.folders.file("claim.json")

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 1000, "it waits for ever"
        for due in [event for event in self.events if event[0] <= self.now]:
            self.events.remove(due)
            due[1]()

    def shard(self, run: str = "mine", shard: Shard | None = None, **pace: float) -> ClaimedShard:
        times: dict[str, Any] = {"beat": RARELY, "clock": lambda: self.now, "sleep": self.sleep, **pace}
        return ClaimedShard(self.storage, self.folders, shard or Shard(), self.stop, run, Pace(**times), self.machine)

    def holder(self, **changes: Any) -> Claim:
        """Another run's claim, of process 100 on this machine."""
        return replace(self.machine.claim("other"), **{"pid": 100, "started": 7, **changes})

    def write(self, content: bytes | Claim) -> None:
        self.storage.atomic_write(self.path, content.encoded() if isinstance(content, Claim) else content)

    def found(self) -> Claim | None:
        content = read_content(self.storage, self.path)
        return None if content is None else Claim.of(content)

    def renews(self, claim: Claim, until: float) -> None:
        """Lets another run hold its claim and renew it every 15 s, for so many seconds."""
        self.write(claim)
        for second in range(15, int(until) + 1, 15):
            claim = claim.renewal()
            self.events.append((float(second), lambda claim=claim: self.write(claim)))  # type: ignore[misc]


@pytest.fixture(params=["disk", "store"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "disk":
        folders = Folders(str(tmp_path / "out"), str(tmp_path / "state"))
        yield World(LocalStorage(folders.file("tmp")), folders)
    else:
        url = request.getfixturevalue("bucket").url
        yield World(ObjectStorage(), Folders(f"{url}/out", f"{url}/state"))
    assert not claiming._running


@pytest.fixture
def disk(tmp_path: Path) -> World:
    folders = Folders(str(tmp_path / "out"), str(tmp_path / "state"))
    return World(LocalStorage(folders.file("tmp")), folders)


def wait_for(condition: Callable[[], object]) -> None:
    """A wait without an end is ended by pytest-timeout."""
    while not condition():
        time.sleep(0.002)


def test_a_free_shard_is_claimed_and_given_back(world: World) -> None:
    with world.shard() as claimed:
        found = world.found()
        assert found is not None and (found.run, found.pid, found.host) == ("mine", os.getpid(), "here")
        assert not claimed.has_waited
    assert world.storage.list(world.folders.state) in ([], ["tmp"])


def test_each_shard_has_a_claim_of_its_own(disk: World) -> None:
    with disk.shard("a", Shard(0, 2)), disk.shard("b", Shard(1, 2)):
        names = {"claim-0-of-2.json", "claim-1-of-2.json"}
        assert names <= set(disk.storage.list(disk.folders.state))
    assert disk.now == 0


@pytest.mark.parametrize(
    "changes",
    [{"pid": 101}, {"started": 6}, {"pid": os.getpid(), "started": 5}],
    ids=["its process has ended", "a later process has its number", "a run of this process has ended"],
)
def test_what_a_run_that_has_ended_left_is_taken_at_once(world: World, changes: dict[str, int]) -> None:
    world.write(world.holder(**changes))
    with world.shard() as claimed:
        assert (world.found().run, world.now, claimed.has_waited) == ("mine", 0, False)


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_claim_is_taken_at_once(disk: World, content: bytes) -> None:
    disk.write(content)
    with disk.shard():
        assert (disk.found().run, disk.now) == ("mine", 0)


def test_a_run_waits_until_the_other_one_is_done(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    world.renews(world.holder(), until=95)
    world.events.append((95, lambda: world.storage.remove(world.path)))
    with world.shard() as claimed:
        assert 95 <= world.now <= 97 and claimed.has_waited and world.found().run == "mine"
    lines = [record.getMessage() for record in caplog.records]
    assert "claim.json: process 100 on here (since 2" in lines[0] and "serves the whole job already" in lines[0]
    assert [line.partition("), ")[2] for line in lines[1:4]] == ["30 s so far", "60 s so far", "90 s so far"]
    assert "waited for 96 s" in lines[4] and len(lines) == 5


def test_a_run_takes_over_at_once_when_the_other_one_dies(world: World) -> None:
    world.renews(world.holder(), until=95)
    world.events.append((95, world.machine.processes.clear))
    with world.shard():
        assert 95 <= world.now <= 97 and world.found().run == "mine"


@pytest.mark.parametrize("changes", [{"host": "there"}, {"boot": "earlier"}, {"namespace": "pid:[2]"}, {}])
def test_a_run_takes_over_when_a_claim_has_not_changed_for_a_minute(disk: World, changes: dict[str, str]) -> None:
    """Elsewhere no process can be looked up. Here it may be suspended."""
    disk.renews(disk.holder(**changes), until=90)
    with disk.shard():
        assert 150 <= disk.now <= 152 and disk.found().run == "mine"


def test_no_clocks_of_two_machines_are_compared(disk: World) -> None:
    disk.renews(disk.holder(host="there", since="1970-01-01 00:00:00 UTC", renewed="2100-01-01 00:00:00 UTC"), until=30)
    with disk.shard():
        assert 90 <= disk.now <= 92


def test_a_claim_is_not_old_because_it_was_not_looked_at(disk: World) -> None:
    """The process that waits is suspended for a long time, or the storage does not answer."""
    disk.write(disk.holder(host="there"))

    def suspend() -> None:
        disk.now += 300

    disk.events.append((50, suspend))
    with disk.shard():
        assert 410 <= disk.now <= 414


@pytest.mark.parametrize("seconds", [20, 100])
def test_a_storage_that_fails_while_a_run_waits(disk: World, monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """For a moment, or for longer than a claim may stay as it is."""
    disk.renews(disk.holder(host="there"), until=200)
    disk.events.append((200, lambda: disk.storage.remove(disk.path)))
    open_file = disk.storage.open

    def failing(path: str) -> Any:
        if 40 < disk.now < 40 + seconds:
            raise OSError(errno.ESTALE, "no answer")
        return open_file(path)

    monkeypatch.setattr(disk.storage, "open", failing)
    if seconds == 20:
        with disk.shard():
            assert 200 <= disk.now <= 202
    else:
        with pytest.raises(OSError, match="no answer"), disk.shard():
            raise AssertionError
        assert 100 <= disk.now <= 104


def test_a_claim_that_cannot_be_read_at_the_start_is_an_error(disk: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise OSError(errno.EACCES, "no rights")

    monkeypatch.setattr(disk.storage, "open", refuse)
    with pytest.raises(OSError, match="no rights"), disk.shard():
        raise AssertionError
    assert disk.now == 0


def test_a_signal_ends_the_waiting(world: World) -> None:
    world.renews(world.holder(), until=500)
    world.events.append((10, lambda: signal.raise_signal(signal.SIGTERM)))
    with world.stop, pytest.raises(Stopped, match="SIGTERM"), world.shard():
        raise AssertionError
    assert world.now == 10 and world.found().run == "other"


def test_a_signal_while_the_claim_is_written_leaves_none(disk: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write = disk.storage.atomic_write

    def interrupted(*arguments: Any, **options: Any) -> bool:
        write(*arguments, **options)
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError

    monkeypatch.setattr(disk.storage, "atomic_write", interrupted)
    with disk.stop, pytest.raises(Stopped), disk.shard():
        raise AssertionError
    assert disk.found() is None and not claiming._running


def test_of_several_runs_that_take_over_at_once_one_at_a_time_serves(world: World) -> None:
    """All of them see the claim of a run that has ended at the same moment, and each serves in the end."""
    world.write(world.holder(pid=101))
    together, inside = threading.Barrier(5), []

    def serve(run: str) -> list[str]:
        together.wait()
        with world.shard(run, poll=0.001, sleep=time.sleep, clock=time.monotonic):  # type: ignore[arg-type]
            inside.append(run)
            seen = list(inside)
            time.sleep(0.005)
            inside.remove(run)
            return seen

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(serve, "abcde")) == [[run] for run in "abcde"]


def test_a_claim_is_renewed(world: World) -> None:
    with world.shard(beat=0.005):
        before = world.found()
        wait_for(lambda: world.found().beat >= 3)
        after = world.found()
        assert replace(after, beat=0, renewed=before.renewed) == replace(before, beat=0)
        assert before.beat < 3
    assert world.found() is None and world.stop.requested is None


@pytest.mark.parametrize("content", [None, b"", b"{}"], ids=["removed", "empty", "foreign"])
def test_a_claim_that_was_removed_or_damaged_is_written_again(world: World, content: bytes | None) -> None:
    with world.shard() as claimed:
        if content is None:
            world.storage.remove(world.path)
        else:
            world.write(content)
        assert claimed._renew()
        assert (world.found().run, world.found().beat) == ("mine", 1)


def test_a_run_whose_claim_was_taken_over_is_asked_to_end(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with world.shard(beat=0.005) as claimed:
        world.write(world.holder(host="there"))
        wait_for(lambda: world.stop.requested)
        wait_for(lambda: not claimed._thread.is_alive())
        with pytest.raises(Stopped, match=r"process 100 on there \(since .*serves the whole job, as"):
            world.stop.check()
    assert world.found().run == "other", "it is the other run's, and stays"
    assert "serves the whole job, as" in caplog.text


def test_a_run_whose_claim_is_gone_after_a_long_time_is_asked_to_end(disk: World) -> None:
    """Another run has taken it over and is done: what this run would go on with is there."""
    with disk.shard() as claimed:
        disk.now += 61
        assert claimed._renew() and disk.found().beat == 1, "late, but nobody has taken it over"
        disk.storage.remove(disk.path)
        disk.now += 61
        assert not claimed._renew()
    with pytest.raises(Stopped, match="another run has served the whole job, as this process"):
        disk.stop.check()
    assert disk.found() is None


def test_a_storage_that_fails_for_some_time_ends_no_job(
    disk: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file, left = disk.storage.replace, [OSError("no answer"), OSError("no answer"), OSError("no answer")]

    def failing(*arguments: Any) -> bool:
        if left:
            raise left.pop()
        return replace_file(*arguments)

    monkeypatch.setattr(disk.storage, "replace", failing)
    with disk.shard(beat=0.002):
        wait_for(lambda: disk.found().beat >= 2)
    assert disk.stop.requested is None and not left
    assert caplog.text.count("the claim of this run is not renewed: no answer") == 1


def test_a_claim_that_cannot_be_removed_is_told_and_fails_no_run(
    disk: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> None:
        raise OSError("no answer")

    with monkeypatch.context() as patch, disk.shard():
        patch.setattr(disk.storage, "remove", refuse)
    assert "the claim of this run stays: no answer" in caplog.text
    with disk.shard("next"):
        assert disk.now == 0, "its run has ended, though its process lives"


@pytest.mark.parametrize(
    ("shard", "other", "expected"),
    [
        (Shard(), Shard(1, 2), "serves shard 1/2 already, which overlaps with the whole job"),
        (Shard(0, 2), Shard(), "serves the whole job already, which overlaps with shard 0/2"),
        (Shard(0, 2), Shard(1, 3), "serves shard 1/3 already, which overlaps with shard 0/2"),
        (Shard(0, 2), Shard(1, 4), None),
        (Shard(0, 3), Shard(1, 3), None),
    ],
)
def test_shards_that_overlap_are_told(
    disk: World, caplog: pytest.LogCaptureFixture, shard: Shard, other: Shard, expected: str | None
) -> None:
    path = disk.folders.file(other.file_name("claim", "json"))
    disk.storage.atomic_write(path, disk.holder().encoded())
    with disk.shard(shard=shard) as claimed:
        claimed._warn_of_others()
    assert (expected or "") in caplog.text
    assert len(caplog.records) == (expected is not None) and disk.now == 0


def test_an_overlapping_shard_elsewhere_is_told_when_it_has_renewed_its_claim(
    disk: World, caplog: pytest.LogCaptureFixture
) -> None:
    """One whose run was killed stays silent."""
    path = disk.folders.file("claim-1-of-2.json")
    holder = disk.holder(host="there")
    disk.storage.atomic_write(path, holder.encoded())
    disk.storage.atomic_write(disk.folders.file("claim-0-of-2.json"), disk.holder(pid=101).encoded())
    with disk.shard(beat=0.005) as claimed:
        wait_for(lambda: disk.found().beat > claiming.BEATS_WITH_OTHERS)
        assert not caplog.records
        disk.storage.atomic_write(path, holder.renewal().encoded())
        claimed._warn_of_others()
        claimed._warn_of_others()
    (record,) = caplog.records
    assert "process 100 on there" in record.getMessage() and "shard 1/2" in record.getMessage()
