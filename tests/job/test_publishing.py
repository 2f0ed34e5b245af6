"""Every row that is computed is published: tables that parts once could not hold, and damage that shows late."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rwkv_batch import cli

from .conftest import Job


def files(job: Job, *tables: pa.Table) -> Job:
    (job.folder / "in").mkdir()
    for index, table in enumerate(tables):
        pq.write_table(table, job.folder / "in" / f"{index}.parquet")
    return job.set(input__path=str(job.folder / "in"))


def test_a_column_that_is_required_in_one_file_and_missing_in_another(job: Job) -> None:
    inner = pa.struct([pa.field("a", pa.int32(), nullable=False)])
    fields = [pa.field(name, kind, nullable=False) for name, kind in (("prompt", pa.string()), ("id", inner))]
    required = pa.table([["p", "q"], [{"a": 1}, {"a": 2}]], schema=pa.schema(fields))
    assert files(job, required, pa.table({"prompt": ["r"]})).run() == 0
    assert [row["id"] for row in job.rows()] == [{"a": 1}, {"a": 2}, None]
    assert all(field.nullable for field in job.table().schema)


def test_views_with_several_samples(job: Job) -> None:
    texts = pa.array(["p", "q"], pa.string_view())
    nested = pa.array([{"a": "x"}, None], pa.struct([("a", pa.string_view())]))
    files(job, pa.table({"prompt": texts, "raw": texts.cast(pa.binary_view()), "nested": nested}))
    assert job.set(sampling__n=2).run() == 0
    rows = job.rows()
    assert [(row["prompt"], row["raw"]) for row in rows] == [("p", b"p")] * 2 + [("q", b"q")] * 2
    assert [row["nested"] for row in rows] == [{"a": "x"}] * 2 + [None] * 2


@pytest.mark.parametrize("depth", [33, 60, 120, 480])
@pytest.mark.parametrize("kind", ["lists", "objects", "both"])
def test_values_that_are_deeper_than_parquet_allows(job: Job, depth: int, kind: str) -> None:
    start, end = {"lists": ("[", "]"), "objects": ('{"a": ', "}"), "both": ('[{"a": ', "}]")}[kind]
    deep = start * depth + "1" + end * depth
    assert job.lines('{"prompt": "a", "x": null}', f'{{"prompt": "b", "x": {deep}}}', '{"prompt": "c"}').run() in (0, 3)
    rows = job.rows()
    assert (rows[0]["status"], rows[2]["status"]) == ("ok", "ok")
    held = rows[1]["x"]
    assert rows[1]["status"] == "error" or (json.loads(held) if isinstance(held, str) else held) == json.loads(deep)
    assert job.run() in (0, 3)


def test_a_page_that_is_damaged_in_the_middle_of_a_file(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """The first rows can be read, so that the job begins. All rows are served, whatever column is damaged."""
    texts = [f"{row:05d}" * 40 for row in range(3000)]
    table = pa.table({"prompt": [f"p{row}" for row in range(3000)], "note": texts})
    path = job.folder / "prompts.parquet"
    pq.write_table(table, path, row_group_size=1000, use_dictionary=False)
    chunk = pq.read_metadata(path).row_group(1).column(1)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + 40 : chunk.data_page_offset + chunk.total_compressed_size] = b"\xff" * (
        chunk.total_compressed_size - 40
    )
    path.write_bytes(data)
    job.set(input__path=str(path), output__rows_per_part=1000, sampling__n=2)
    assert job.run() == 3
    rows = job.rows()
    assert [row["prompt"] for row in rows] == [f"p{row}" for row in range(3000) for _ in range(2)]
    assert [row["note"] for row in rows] == [
        None if 1000 <= row < 2000 else texts[row] for row in range(3000) for _ in range(2)
    ]
    errors = [row for row in rows if row["status"] == "error"]
    assert len(errors) == 2000 and all(row["completion"] for row in errors)
    assert all(row["error_code"] == "read_error" and str(path) in row["error"] for row in errors)
    assert all("'note'" in row["error"] for row in errors)
    success = json.loads((job.state / "_SUCCESS.json").read_text())
    assert success["errors"] == 1000
    assert job.run() == 3


def test_a_part_that_cannot_be_made_leaves_nothing_behind(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a file under a part's name. What was committed stays."""
    with monkeypatch.context() as patch:
        patch.setattr("rwkv_batch.job.output.part_check.PartCheck.check", lambda self: None)
        patch.setattr("rwkv_batch.job.output.parts._read_back", lambda *_: 1 / 0)
        assert job.run() == 1
    assert not Path(job.output).exists() or not list(job.output.iterdir())
    assert list(job.state.glob("unit-*/*.seg"))
    assert job.run() == 0


@pytest.mark.parametrize("is_paused", [False, True])
def test_a_part_that_is_damaged_on_the_disk_is_set_aside_and_made_again(
    job: Job, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, is_paused: bool
) -> None:
    """Any byte may change: in a page, where the part can still be read, or in the footer."""
    assert job.run() == 0
    parts = job.parts()
    name = "part-00001-of-00003.parquet"
    whole = parts[name]
    for place in range(4, len(whole) - 4, len(whole) // 13):
        caplog.clear()
        broken = whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :]
        (job.output / name).write_bytes(broken)
        if is_paused:
            (job.output / "part-00002-of-00003.parquet").unlink()
        assert job.run() == 0, place
        assert job.parts() == parts, place
        (aside,) = (job.state / "damaged").iterdir()
        assert aside.read_bytes() == broken
        assert f"{job.output / name} is damaged" in caplog.text and f"it is now {aside}" in caplog.text
        assert f"{job.output / name}" in (job.state / "log.jsonl").read_text()
        aside.unlink()
    capsys.readouterr()


def test_a_damaged_part_is_named_by_the_report(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.run() == 0
    path = job.output / "part-00001-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:500])
    assert cli.main(["report", str(job.output), "--show", "20"]) == 0
    text = capsys.readouterr().out
    assert "damaged part-00001-of-00003.parquet cannot be read; start the job again to make it again" in text
    assert "row-9" in text and "row-10" not in text and "row-29" in text
    report = json.loads((job.state / "report.json").read_text())
    assert (report["complete"], list(report["damaged"]), report["rows"]) == (False, [path.name], {"ok": 20})
    assert path.name in (job.state / "report.html").read_text()
    assert job.run() == 0
    assert json.loads((job.state / "report.json").read_text())["damaged"] == {}


def test_a_local_output_takes_an_address_of_a_file(job: Job) -> None:
    path = job.output
    assert job.set(output__path=f"file://{path}").run() == 0
    assert len(list(path.iterdir())) == 3
