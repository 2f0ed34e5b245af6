"""Finished jobs for tests, with records of one's own: a part and job.json, without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def finished_job(
    folder: Path, records: Sequence[Mapping[str, Any]], *, columns: Mapping[str, str] = {}, **settings: Any
) -> str:
    """Writes the output of a job in one part. Returns its output folder.

    Args:
        records: the output rows; what a record leaves out is null.
        columns: columns that the job adds → their other names.
        settings: of job.json; "chat__think" is chat.think.
    """
    state = Path(f"{folder}.rwkv_batch")
    for one in (folder, state):
        one.mkdir(parents=True)
    names = list(dict.fromkeys(name for record in records for name in record))
    table = pa.table({name: [record.get(name) for record in records] for name in names})
    pq.write_table(table, folder / "part-00000-of-00001.parquet", row_group_size=3)
    job = {
        "settings": {"task": "generate", **{name.replace("__", "."): value for name, value in settings.items()}},
        "plan": {"rows": 1, "units": 1},
        "input": [],
        "columns": dict(columns),
        "fingerprint": "0" * 64,
    }
    (state / "job.json").write_text(json.dumps(job))
    return str(folder)


def samples_of(identity: Any, answer: Any, *completions: str, reason: str = "stop") -> list[dict[str, Any]]:
    """The records of a row: one for each completion."""
    return [
        {
            "id": identity,
            "answer": answer,
            "sample_index": index,
            "completion": completion,
            "finish_reason": reason,
            "status": "ok",
            "completion_tokens": len(completion),
        }
        for index, completion in enumerate(completions)
    ]


def error_of(identity: Any, answer: Any) -> list[dict[str, Any]]:
    """The record of a row that could not be served."""
    return [{"id": identity, "answer": answer, "sample_index": 0, "finish_reason": "error", "status": "error"}]
