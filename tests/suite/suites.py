"""A suite in a folder, and a stand-in for the process that evaluates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rwkv_batch.suite.messages import Answer, Check, Checked, Done, Evaluate
from rwkv_batch.suite.result import Metric, Samples

GRADE = {"answer": "answer", "extract": ["[0-9]+"]}


def write_suite(folder: Path, **settings: Any) -> str:
    """Writes a suite with a job of each task and a task of the harness, the job files and their inputs.

    Args:
        settings: replace those of the suite; None leaves one out.
    """
    rows: list[dict[str, Any]] = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(3)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"context": f"{i}+1=", "choices": ["7", str(i + 1)], "answer": 1} for i in range(3)]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds: dict[str, dict[str, Any]] = {"sums": {"sampling": {"max_tokens": 4}}, "choices": {"task": "score"}}
    for name, more in kinds.items():
        job = {
            "model": {"path": "x"},
            "input": {"path": str(folder / f"{name}.jsonl")},
            "output": {"path": "y"},
            **more,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(job))
    suite = {
        "model": {"tokenizer": "bytes"},
        "tasks": [
            {"lm_eval": ["arc", "winogrande"], "limit": 5},
            {"name": "sums", "job": "sums.yaml", "set": {"sampling.n": 2}, "grade": GRADE},
            {"name": "choices", "job": "choices.yaml"},
        ],
        "output": {"path": str(folder / "out")},
        **settings,
    }
    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in suite.items() if value is not None}))
    return str(file)


def done(accuracy: float = 0.5) -> Done:
    """The answer to a task that went well."""
    samples = Samples(["0", "1"], {"accuracy": np.array([0.0, 1.0])})
    return Done((Metric("accuracy", accuracy, 0.4, 0.6, 2, True),), samples, 1.5, {"rows": 2})


class FakeEvaluator:
    """Answers at once.

    Args:
        answers: gives the answer to a question, given the checkpoint's id and the task's name; None is `done()`.
    """

    def __init__(self, answers: Callable[[str, str], Answer | None] = lambda model, task: None) -> None:
        self._answers = answers
        self.problems: tuple[str, ...] = ()
        self.asked: list[tuple[str, str]] = []
        self.checks = 0
        self.late: Answer | None = None

    def ask(self, question: Check | Evaluate) -> Answer:
        if isinstance(question, Check):
            self.checks += 1
            return Checked(self.problems)
        pair = question.checkpoint.id, question.task.name
        self.asked.append(pair)
        return self._answers(*pair) or done()

    def interrupt(self) -> Answer:
        assert self.late is not None
        return self.late

    def close(self) -> None:
        pass
