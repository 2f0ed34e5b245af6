"""Folders in object stores that a job refuses, before the model is loaded and without a change of the store."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from fakes.object_store import SECRET, Bucket

from job import fake_llm
from rwkv_batch.job.output.object_storage import ObjectStorage

from .conftest import Job


@pytest.fixture
def remote(small: Job, bucket: Bucket) -> Job:
    return small.set(output__path=f"{bucket.url}/out/eval")


def in_input(job: Job, bucket: Bucket) -> None:
    with open(job.settings["input"]["path"], "rb") as file:
        ObjectStorage().atomic_write(f"{bucket.url}/in/eval/a.parquet", file.read())
    job.set(input__path=f"{bucket.url}/in", output__path=f"{bucket.url}/in/eval-out")


def around_input(job: Job, bucket: Bucket) -> None:
    in_input(job, bucket)
    job.set(input__path=f"{bucket.url}/in/eval/a.parquet", output__path=f"{bucket.url}/in")


def foreign(job: Job, bucket: Bucket) -> None:
    ObjectStorage().atomic_write(f"{bucket.url}/out/eval/data.csv", b"a,b\n")


def to(path: str, state_dir: str | None = None) -> Callable[[Job, Bucket], None]:
    def arrange(job: Job, bucket: Bucket) -> None:
        job.set(output__path=path.replace("BUCKET", bucket.url))
        if state_dir:
            job.set(run__state_dir=state_dir.replace("BUCKET", bucket.url))

    return arrange


@pytest.mark.parametrize(
    ("arrange", "expected"),
    [
        (in_input, "parts would become input"),
        (around_input, "which contains the input"),
        (foreign, "is not empty and is no job's output"),
        (to("BUCKET/a", "BUCKET/a/state"), "contain each other"),
        (to("BUCKET/a/b", "BUCKET/a"), "contain each other"),
        (to("/tmp/a", "BUCKET/a"), "expected a folder on a local disk: output.path is one"),
        (to("BUCKET"), "expected a folder in a bucket, such as s3://bucket/eval"),
        (to("BUCKET/a//b"), "no empty folder name"),
        (to("BUCKET/../b"), "no . or .. in it"),
        (to("BUCKET/a?b"), "without '?'"),
        (to(f"BUCKET/{'x' * 901}"), "at most 900 bytes"),
        (to("s3://host:9000/a"), "expected a bucket's name of letters"),
        (to("s3://b%2Fc/a"), "expected a bucket's name of letters"),
        (to("s3:/bucket/a"), "got 's3:/bucket/a', expected a colon and two slashes: s3://bucket/a"),
        (to("s3//bucket/a"), "got 's3//bucket/a', expected a colon and two slashes: s3://bucket/a"),
        (to("BUCKET/a", "gs:bucket/a"), "got 'gs:bucket/a', expected a colon and two slashes: gs://bucket/a"),
        (to("ftp://host/a"), "the scheme ftp:// is not served; expected s3://, gs:// or az://"),
        (to("s3://key:hidden@bucket/a"), "expected credentials in the environment alone"),
        (to("s3://no-such-bucket/a"), "NoSuchBucket"),
    ],
)
def test_folders_that_are_refused(
    remote: Job, bucket: Bucket, capsys: pytest.CaptureFixture[str], arrange: Any, expected: str
) -> None:
    arrange(remote, bucket)
    before = bucket.objects()
    assert remote.run() == 2
    message = capsys.readouterr().err
    assert expected in message and "hidden" not in message and SECRET not in message
    assert bucket.objects() == before and fake_llm.LLM.loaded == 0


def test_a_store_that_cannot_be_written_to_is_refused_before_the_model_is_loaded(
    remote: Job, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.proxy.schedule = lambda asked: "403" if asked.method == "PUT" else None
    assert remote.run() == 2
    assert "cannot be written: AccessDenied" in capsys.readouterr().err and fake_llm.LLM.loaded == 0


def test_another_job_is_refused(remote: Job, bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    assert remote.run() == 0
    assert remote.set(sampling__max_tokens=9).run() == 4
    message = capsys.readouterr().err
    assert f"start over: remove everything below {bucket.url}/out/eval/ and" in message


def test_without_obstore_the_extra_is_named(
    remote: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert remote.run() == 2
    assert "pip install 'rwkv_batch[object-store]'" in capsys.readouterr().err
