"""Settings and fixtures for harnesses: they run offline, and write into the tests' folders."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

# The harnesses' libraries read these variables when they are imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from checkpoints import write_checkpoint
from oracle import Oracle
from safetensors.torch import load_file

from rwkv_batch.llm import LLM
from rwkv_batch.model_summary import DEMO_MODEL

sys.path.insert(0, str(Path(__file__).parent))

from integrations.local_tasks import MORE_TASKS, TASKS, Reference, command, documents, ids
from integrations.small_model import MERGES, VOCAB


@pytest.fixture(scope="session")
def demo_oracle(oracle: Callable[..., Oracle], tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """The `rwkv` package with the bundled model, in float32."""
    tensors = {name: tensor.to(torch.float32) for name, tensor in load_file(DEMO_MODEL).items()}
    return oracle("7.0", write_checkpoint(tensors, tmp_path_factory.mktemp("demo") / "demo.pth"))


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Restores the process's logging, which harnesses configure."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in list(logging.root.manager.loggerDict))]
    before = [(logger, logger.level, logger.propagate, logger.disabled, list(logger.handlers)) for logger in loggers]
    disabled = logging.root.manager.disable
    yield
    logging.disable(disabled)
    for logger, level, propagate, is_disabled, handlers in before:
        logger.setLevel(level)
        logger.propagate, logger.disabled, logger.handlers = propagate, is_disabled, handlers


@pytest.fixture(autouse=True)
def own_dataset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gives each test its own cache of datasets, and restores the command line, which harnesses change."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    yield


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary file with every byte, and some tokens that merge over the border of a context."""
    tokens: list[str | bytes] = [bytes([byte]) for byte in range(256)]
    lines = [f"{i} {token!r} {len(token)}" for i, token in enumerate(tokens, 1)]
    lines += [f"{i} {token!r} {len(token.encode())}" for i, token in enumerate(MERGES, 257)]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def model(checkpoint_file, vocabulary):
    """`model(version="7.0", **arguments)`: the harness's model over a random checkpoint, which is loaded once."""
    from rwkv_batch.integrations.lm_eval import RwkvBatchLM

    loaded: dict[str, LLM] = {}

    def get(version: str = "7.0", **arguments: Any) -> Any:
        if version not in loaded:
            path = checkpoint_file(version, vocab=VOCAB)
            loaded[version] = LLM(path, tokenizer=str(vocabulary), max_batch_size=8, max_batch_tokens=64)
        return RwkvBatchLM(loaded[version], **arguments)

    return get


@pytest.fixture(scope="session")
def reference(demo_oracle: Oracle) -> Reference:
    """`reference(context, continuation)`: log-likelihood and is_greedy by the `rwkv` package, after token 0."""

    def score(context: str, continuation: str) -> tuple[float, bool]:
        total, _, is_greedy = demo_oracle.loglikelihood([0, *ids(context)], ids(continuation))
        return total, is_greedy

    return score


@pytest.fixture(scope="session")
def greedy(demo_oracle: Oracle) -> Callable[[str], str]:
    def complete(context: str) -> str:
        found: list[int] = []
        while len(found) < 8:
            logits, _ = demo_oracle.forward([0, *ids(context), *found], full_output=True)
            found.append(int(logits[-1].argmax()))
            if found[-1] == 0:
                break
        return bytes(i - 1 for i in found if i).decode(errors="replace").split("\n")[0]

    return complete


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory, greedy: Callable[[str], str]) -> Path:
    """A folder with the tasks: choices from JSON lines, the others from Parquet."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = documents(greedy)
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, body in {**TASKS, **MORE_TASKS}.items():
        kind, file = ("json", "rows.jsonl") if name == "local_choices" else ("parquet", "rows.parquet")
        files = {split: str(folder / file) for split in ("train", "test")}
        head: dict[str, Any] = {"task": name, "dataset_path": kind, "test_split": "test", "fewshot_split": "train"}
        head |= {"dataset_kwargs": {"data_files": files}, "metadata": {"version": 1.0}}
        (folder / f"{name}.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in head.items()) + body)
    return folder


@pytest.fixture
def evaluate(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """`evaluate(*arguments)`: runs the command in this process; returns its results and the samples of each task."""
    import lm_eval.evaluator
    import lm_eval.tasks

    from rwkv_batch.cli import main

    # Without the harness's own tasks: it would read 14,000 files.
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))
    # Without a description of the system: asking for compilers, drivers and packages takes seconds.
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)
    monkeypatch.setattr(lm_eval.evaluator, "get_git_commit_hash", lambda: None)
    # With 10 resamplings for standard errors, which are not tested here, in place of 100,000.
    evaluate = lm_eval.evaluator.evaluate
    monkeypatch.setattr(lm_eval.evaluator, "evaluate", lambda **given: evaluate(**{**given, "bootstrap_iters": 10}))
    runs: list[Path] = []

    def run(*arguments: str, names: tuple[str, ...] = tuple(TASKS)) -> dict[str, Any]:
        out = tmp_path / f"out{len(runs)}"
        runs.append(out)
        assert main(["lm-eval", *command(tasks, names), "--output_path", str(out), *arguments]) == 0
        (file,) = out.glob("*/results_*.json")
        samples = {name: next(iter(out.glob(f"*/samples_{name}_*.jsonl")), None) for name in names}
        lines = {name: [json.loads(line) for line in p.open()] for name, p in samples.items() if p}
        return {**json.loads(file.read_text()), "lines": lines}

    return run
