"""A job with conversations that an earlier version has begun goes on with the prompts and stops of that version."""

from __future__ import annotations

import json

import pytest

from .conftest import Job
from .test_chat import CALL, CHATML, HELLO, RESULT, dry_run


def begun_by_an_earlier_version(job: Job) -> None:
    """Starts a job, and takes out of its job.json what such a version did not know."""
    assert job.run("-o", "sampling.stop=[]") == 0
    path = job.state / "job.json"
    document = json.loads(path.read_text())
    document["settings"]["sampling.stop"] = None
    for name in [name for name in document["settings"] if name.startswith("chat.")]:
        del document["settings"][name]
    path.write_text(json.dumps(document))
    next(job.output.iterdir()).unlink()


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_job_of_an_earlier_version_goes_on_as_it_began(
    job: Job, form: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    model = job.folder / "model"
    model.mkdir()
    job.set(model__path=str(model), output__extra=["prompt"])
    conversations = [HELLO, [*HELLO, RESULT], [*HELLO, {**CALL, "content": "x"}, *HELLO]]
    if form == "parquet":
        job.input(messages=[json.dumps(one) for one in conversations])
    else:
        job.lines(*(json.dumps({"messages": one}) for one in conversations[:1]))
    begun_by_an_earlier_version(job)
    (model / "chat_template.jinja").write_text(CHATML)  # an earlier version did not look for it
    shown = dry_run(job, capsys)
    assert "this job was begun by a version without the section chat" in shown
    assert job.run() == (3 if form == "parquet" else 0)
    rows = job.rows()
    assert rows[0]["prompt"] == "User: hi\n\nAssistant:"
    assert "this job was begun by a version without the section chat" in caplog.text
    if form == "parquet":
        assert rows[1]["error"] == ("message 1 has role 'tool'; expected one of system, user, assistant, developer")
        assert rows[2]["prompt"] == "User: hi\n\nAssistant: x\n\nUser: hi\n\nAssistant:"


def test_a_job_of_an_earlier_version_takes_no_other_format(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.input(messages=[HELLO])
    begun_by_an_earlier_version(job)
    assert job.run("-o", "chat.format=bot") == 4
    assert 'chat.format: "auto" when it was started, "bot" now' in capsys.readouterr().err
