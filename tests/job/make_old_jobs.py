"""Makes tests/job/data/COMMIT: jobs that a commit has begun or finished, for later commits to go on with.

    git worktree add /tmp/old COMMIT --detach
    PYTHONPATH=/tmp/old python tests/job/make_old_jobs.py tests/job/data/COMMIT

Each job has its input, its settings, and two runs: `finished`, and `paused`, which was killed after it had published a
part and committed some rows of the next one. Nothing in a folder tells where it was made.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROWS = 20
SEGMENTS = 5
"""How many the killed run leaves."""

WORDS = ("def", "class", "import", "return", "for", "while", "with", "if", "raise", "print")

GENERATE = {
    "task": "generate",
    "sampling": {
        "n": 2,
        "max_tokens": 12,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["\n\n", "7"],
        "presence_penalty": 0.3,
        "logit_bias": {11: -1.5},
    },
}
SCORE = {"task": "score", "score": {"add_bos_token": True}, "input": {"columns": {"answer": "right"}}}
COMMON: dict[str, Any] = {
    "model": {"path": "demo", "dtype": "float32"},
    "engine": {"device": "cpu", "max_batch_size": 3},
    "input": {"path": "input.parquet", "max_prompt_tokens": 60},
    "output": {"path": "made", "rows_per_part": 7, "flush_seconds": 0, "token_ids": True, "logprobs": True},
}

KILLED_RUN = f"""
import os, signal
from rwkv_batch.data.commit import JobFiles
from rwkv_batch.run import main

commit = JobFiles.commit
commits = []

def commit_and_die(*arguments):
    commit(*arguments)
    commits.append(1)
    if len(commits) == {SEGMENTS}:
        os.kill(os.getpid(), signal.SIGKILL)

JobFiles.commit = commit_and_die
main()
"""


def generate_input() -> pa.Table:
    """Prompts, one of them null, one too long, and one with a token id to stop at that the model does not have."""
    prompts: list[str | None] = [f"{WORDS[i % len(WORDS)]} é{i}" for i in range(ROWS)]
    prompts[4], prompts[15] = None, "x" * 61
    stops = [[9999] if i in (2, 17) else None for i in range(ROWS)]
    temperatures = [0.0 if i % 5 == 1 else None for i in range(ROWS)]
    return pa.table(
        {
            "id": list(range(100, 100 + ROWS)),
            "prompt": prompts,
            "temperature": pa.array(temperatures, pa.float32()),
            "stop_token_ids": pa.array(stops, pa.list_(pa.int64())),
        }
    )


def score_input() -> pa.Table:
    """Contexts with two to four choices, one of them null, one too long, and one without any choice."""
    contexts: list[str | None] = [f"{WORDS[i % len(WORDS)]} " for i in range(ROWS)]
    contexts[3], contexts[12] = None, "y" * 61
    choices = [[f"{WORDS[(i + j) % len(WORDS)]}é" for j in range(2 + i % 3)] for i in range(ROWS)]
    choices[16] = []
    return pa.table({"context": contexts, "choices": choices, "right": [i % 2 for i in range(ROWS)]})


def run(folder: Path, code: str, *arguments: str) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, "job.yaml", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=False, stdout=subprocess.DEVNULL).returncode


def forget_the_machine(state: Path) -> None:
    """Keep what resuming needs, and of paths only file names."""
    for path in [*state.iterdir()]:
        if path.name == "tmp":
            shutil.rmtree(path)
        elif path.suffix in (".jsonl", ".prom", ".html") or path.name == "report.json":
            path.unlink()
    job = json.loads((state / "job.json").read_text())
    for file in job["input"]:
        file["file"] = "/data/" + os.path.basename(file["file"])
    (state / "job.json").write_text(json.dumps(job, indent=1, ensure_ascii=False))


def make(folder: Path, settings: dict[str, Any], table: pa.Table) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    merged = {name: {**COMMON.get(name, {}), **settings.get(name, {})} for name in {*COMMON, *settings} - {"task"}}
    pq.write_table(table, folder / "input.parquet", compression="zstd")
    (folder / "job.yaml").write_text(yaml.safe_dump({"task": settings["task"], **merged}))
    finish = "from rwkv_batch.run import main; raise SystemExit(main())"
    assert run(folder, finish) == 3
    keep(folder, "finished")
    assert run(folder, finish, "--shard", "1/3") in (0, 3)
    assert run(folder, KILLED_RUN) == -signal.SIGKILL
    keep(folder, "paused")
    assert len([*folder.glob("paused/made.rwkv_batch/unit-*/*.seg")]) == SEGMENTS
    assert [path.name for path in folder.glob("paused/made/*")] == ["part-00001-of-00003.parquet"]


def keep(folder: Path, name: str) -> None:
    forget_the_machine(folder / "made.rwkv_batch")
    (folder / name).mkdir()
    for made in ("made", "made.rwkv_batch"):
        (folder / made).rename(folder / name / made)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    make(target / "generate", GENERATE, generate_input())
    make(target / "score", SCORE, score_input())
