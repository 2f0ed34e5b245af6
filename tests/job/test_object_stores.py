"""Jobs whose output and state are in an object store: a real S3 server over HTTP, behind a proxy that makes faults."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fakes.fault_proxy import schedule
from fakes.object_store import SECRET, Bucket, Crashed, CrashingStorage
from fakes.s3_server import request
from obstore.store import MemoryStore

from job import fake_llm
from rwkv_batch import cli
from rwkv_batch.job.folders import Folders
from rwkv_batch.job.output.object_storage import ObjectStorage

from .conftest import Job

ROWS = 120
KILLS = 4


def undisturbed(job: Job) -> dict[str, bytes]:
    """The parts of the same job on a local disk."""
    url = job.settings["output"]["path"]
    assert job.set(output__path=str(job.folder / "undisturbed")).run() == 0
    parts = job.parts()
    shutil.rmtree(job.output)
    shutil.rmtree(job.state)
    job.set(output__path=url)
    return parts


@pytest.fixture
def remote(small: Job, bucket: Bucket) -> Job:
    return small.set(output__path=f"{bucket.url}/out/eval")


@pytest.fixture
def long(job: Job, bucket: Bucket) -> Job:
    """120 rows in parts of 25, committed as they come."""
    job.input(id=list(range(ROWS)), prompt=[f"prompt {i}" for i in range(ROWS)])
    return job.set(output__rows_per_part=25, output__flush_seconds=0.05, output__path=f"{bucket.url}/out/eval")


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests go to a store of obstore's in this process, over no network."""
    store = MemoryStore()
    monkeypatch.setattr(ObjectStorage, "_store", lambda *_: store)


def parts(bucket: Bucket) -> dict[str, bytes]:
    return bucket.objects("out/eval")


def state(bucket: Bucket) -> dict[str, bytes]:
    return bucket.objects("out/eval.rwkv_batch")


def test_a_job_in_an_object_store_equals_one_on_a_disk(
    remote: Job, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = undisturbed(remote)
    capsys.readouterr()
    assert remote.run() == 0
    assert parts(bucket) == expected
    found = state(bucket)
    logs = [name for name in found if name.startswith("log.") and name.endswith(".jsonl")]
    others = {name for name in found if not name.startswith(("parts/", "log."))}
    assert others == {"job.json", "_SUCCESS.json", "report.json", "report.html", "metrics.prom"}
    assert logs and "completion_tokens" in found["metrics.prom"].decode()
    (run,) = json.loads(found["report.json"])["runs"]
    assert run["outcome"] == "finished" and run["rows"] == 4
    url = f"{bucket.url}/out/eval"
    shown = capsys.readouterr().out
    assert f"report  {url}.rwkv_batch/report.html" in shown and f"rwkv-batch report {url} --show 3" in shown
    for folder in (url, f"{url}/", f"{url}.rwkv_batch"):
        assert cli.main(["report", folder, "--show", "1"]) == 0
        shown = capsys.readouterr().out
        assert f"{url}: 2 of 2 parts, 4 rows" in shown and "prompt_tokens: " in shown
    for folder in (url, f"{url}.rwkv_batch"):
        assert cli.main(["status", folder, "--json"]) == 0
        status = json.loads(capsys.readouterr().out)
        files = {"output": parts(bucket), "state_folder": state(bucket)}
        sizes = {name: {"files": len(all_), "bytes": sum(map(len, all_.values()))} for name, all_ in files.items()}
        assert (status["disk"], status["rows"]["committed"]) == (sizes, 4)
        assert status["shards"][0]["run"]["outcome"] == "finished" and state(bucket).keys() == found.keys()
    assert not list(Path.cwd().glob("s3:*"))
    loaded = fake_llm.LLM.loaded
    assert remote.run() == 0, "everything is there"
    assert fake_llm.LLM.loaded == loaded


def test_an_empty_folder_that_a_console_has_made_is_an_empty_folder(remote: Job, bucket: Bucket) -> None:
    request(bucket.server, "PUT", f"{bucket.name}/out/eval/")
    assert remote.run() == 0


def test_a_dry_run_writes_nothing(remote: Job, bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    assert remote.run("--dry-run") == 0
    assert f"output    {bucket.url}/out/eval: 4 rows in 2 parts" in capsys.readouterr().out
    assert bucket.objects() == {}
    assert not any(asked.startswith(("PUT", "POST", "DELETE")) for asked in bucket.proxy.requests)


def test_a_trial_and_shards(remote: Job, bucket: Bucket) -> None:
    expected = undisturbed(remote)
    assert remote.run("--limit", "2") == 0
    assert {name.split("/")[1] for name in bucket.objects()} == {"eval-limit-2", "eval-limit-2.rwkv_batch"}
    assert remote.run("--shard", "1/2") == 0
    assert "_SUCCESS.json" not in state(bucket)
    assert remote.run("--shard", "0/2") == 0
    assert parts(bucket) == expected
    found = state(bucket)
    assert "_SUCCESS.json" in found and "metrics-1-of-2.prom" in found
    assert [run["shard"] for run in json.loads(found["report.json"])["runs"]] == ["1/2", "0/2"]


@pytest.mark.parametrize("place", ["remote", "local"])
def test_a_state_folder_of_its_own(
    remote: Job, bucket: Bucket, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = undisturbed(remote)
    folder = f"{bucket.url}/state" if place == "remote" else str(tmp_path / "state")
    assert remote.set(run__state_dir=folder).run() == 0
    assert parts(bucket) == expected
    assert not state(bucket)
    if place == "local":
        assert (tmp_path / "state" / "_SUCCESS.json").exists() and (tmp_path / "state" / "log.jsonl").exists()
        assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    else:
        assert "_SUCCESS.json" in bucket.objects("state")
    capsys.readouterr()
    assert cli.main(["report", folder]) == 0
    assert f"{bucket.url}/out/eval: 2 of 2 parts" in capsys.readouterr().out
    name = sorted(expected)[0]
    ObjectStorage().atomic_write(f"{bucket.url}/out/eval/{name}", expected[name][:-50])
    assert remote.run() == 0
    assert parts(bucket) == expected
    aside = [*(tmp_path / "state" / "damaged").iterdir()] if place == "local" else bucket.objects("state/damaged")
    assert len(aside) == 1


def test_a_damaged_part_is_set_aside_and_made_again(
    remote: Job, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    assert remote.run() == 0
    expected = parts(bucket)
    name = sorted(expected)[0]
    damaged = bytearray(expected[name])
    damaged[len(damaged) // 2] ^= 1
    ObjectStorage().atomic_write(f"{bucket.url}/out/eval/{name}", bytes(damaged))
    assert remote.run() == 0
    assert parts(bucket) == expected
    assert [*bucket.objects("out/eval.rwkv_batch/damaged").values()] == [bytes(damaged)]
    assert "is damaged (its checksum is not the one with which it was published)" in caplog.text


def test_a_store_that_fails_damages_nothing(remote: Job, bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    assert remote.run() == 0
    before = bucket.objects()
    capsys.readouterr()
    bucket.proxy.schedule = lambda asked: "503" if ".parquet" in asked.target else None
    assert remote.run() == 1
    message = capsys.readouterr().err
    assert "cannot be read: SlowDown" in message and "start the same command again" in message
    bucket.proxy.schedule = lambda _: None
    found = bucket.objects()
    assert {name: found[name] for name in before if "/log." not in name} == {
        name: data for name, data in before.items() if "/log." not in name
    }
    assert not any("damaged/" in name for name in found)


def test_no_credential_is_logged(remote: Job, bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    bucket.proxy.schedule = schedule(3)
    assert remote.run("--verbose") == 0
    shown = capsys.readouterr()
    everything = "".join([shown.out, shown.err, *(data.decode(errors="ignore") for data in bucket.objects().values())])
    assert SECRET not in everything and "AKIAEXAMPLE" not in everything


def test_input_and_output_in_one_bucket(remote: Job, bucket: Bucket) -> None:
    expected = undisturbed(remote)
    with open(remote.settings["input"]["path"], "rb") as file:
        ObjectStorage().atomic_write(f"{bucket.url}/in/a.parquet", file.read())
    assert remote.set(input__path=f"{bucket.url}/in/*.parquet").run() == 0
    assert {name: pq_rows(data) for name, data in parts(bucket).items()} == {
        name: pq_rows(data) for name, data in expected.items()
    }


def pq_rows(data: bytes) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(data)).to_pylist()


def test_a_crash_at_every_change_of_the_store(
    remote: Job, bucket: Bucket, in_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = undisturbed(remote)
    step, is_over = 0, False
    while not is_over:
        step += 1
        url = f"{bucket.url}/{step}/eval"
        remote.set(output__path=url)
        with monkeypatch.context() as patch:
            patch.setattr(Folders, "open_storage", lambda _, step=step: CrashingStorage(step))
            with contextlib.suppress(Crashed):
                is_over = remote.run() == 0
        seen = bucket.objects(f"{step}/eval")
        assert seen.items() <= expected.items(), f"crash at step {step}"
        assert remote.run() == 0, f"crash at step {step}"
        assert bucket.objects(f"{step}/eval") == expected, f"crash at step {step}"
        found = bucket.objects(f"{step}/eval.rwkv_batch")
        assert "_SUCCESS.json" in found and "report.html" in found
        assert not any(name.endswith(".seg") or name.startswith("damaged") for name in found)
    assert step > 25


def test_fault_schedules_change_no_part(remote: Job, bucket: Bucket, soak_seed: int) -> None:
    expected = undisturbed(remote)
    for trial in range(10):
        seed = 10 * soak_seed + trial
        remote.set(output__path=f"{bucket.url}/{seed}/eval")
        bucket.proxy.schedule = schedule(seed)
        assert remote.run() == 0, seed
        assert bucket.objects(f"{seed}/eval") == expected, seed
        found = bucket.objects(f"{seed}/eval.rwkv_batch")
        assert not any(name.endswith(".seg") or name.startswith("damaged") for name in found), seed
        assert json.loads(found["report.json"])["complete"], seed


def test_sigkill_at_random_moments_with_an_object_store(long: Job, bucket: Bucket, soak_seed: int) -> None:
    expected = undisturbed(long)
    dice = random.Random(soak_seed)
    bucket.proxy.schedule = schedule(soak_seed, share=0.05)
    kills = 0
    for _ in range(KILLS):
        before = {name for name in bucket.objects("out") if name.endswith((".seg", ".parquet"))}
        process = long.start(FAKE_DELAY=0.01, FAKE_HOLD_AFTER=ROWS // (KILLS + 1))
        while {name for name in bucket.objects("out") if name.endswith((".seg", ".parquet"))} == before:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 0.25))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert parts(bucket).items() <= expected.items()
    assert kills == KILLS
    assert long.run() == 0
    assert parts(bucket) == expected


def test_a_signal_commits_what_is_finished_to_the_store(long: Job, bucket: Bucket) -> None:
    long.set(output__rows_per_part=200, output__flush_seconds=86_400)
    process = long.start(FAKE_HOLD_AFTER=30)
    assert process.stdout.readline() == "held\n"
    assert not any(name.endswith(".seg") for name in state(bucket))
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate()
    assert process.returncode == 75, message
    found = state(bucket)
    (segment,) = [data for name, data in found.items() if name.endswith(".seg")]
    assert pq.read_table(io.BytesIO(segment)).num_rows == 30
    assert any(b'"event": "stopped"' in data for name, data in found.items() if name.startswith("log."))
    assert long.run() == 0


def test_two_processes_that_start_at_once_make_one_job(long: Job, bucket: Bucket) -> None:
    expected = undisturbed(long)
    processes = [long.start(NO_CLAIM=1) for _ in range(2)]
    for process in processes:
        _, message = process.communicate()
        assert process.returncode == 0, message
    assert parts(bucket) == expected
    found = state(bucket)
    assert "_SUCCESS.json" in found and not any(name.endswith(".seg") for name in found)
    assert long.run() == 0
