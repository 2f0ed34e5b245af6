"""Tasks of the lm-evaluation-harness over a file of a few rows, and random checkpoints that read bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from checkpoints import make_checkpoint, write_checkpoint
from integrations.local_tasks import MORE_TASKS, TASKS, documents

GROUP = """
group: local_group
task: [local_words, local_choices]
aggregate_metric_list:
- {metric: acc, aggregation: mean, weight_by_size: true}
"""


def write_tasks(folder: Path) -> Path:
    """Writes the tasks into a folder below, which is returned."""
    tasks = folder / "tasks"
    tasks.mkdir()
    rows = tasks / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in documents(lambda text: "abc")))
    for name, body in {**TASKS, "local_samples": MORE_TASKS["local_samples"]}.items():
        files = {split: str(rows) for split in ("train", "test")}
        head: dict[str, Any] = {"task": name, "dataset_path": "json", "test_split": "test", "fewshot_split": "train"}
        head |= {"dataset_kwargs": {"data_files": files}, "metadata": {"version": 1.0}}
        (tasks / f"{name}.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in head.items()) + body)
    (tasks / "local_group.yaml").write_text(GROUP)
    return tasks


def write_random(path: Path, seed: int) -> Path:
    """Writes a random checkpoint for the tokenizer `bytes`."""
    return write_checkpoint(make_checkpoint("7.0", vocab=257, seed=seed), path)
