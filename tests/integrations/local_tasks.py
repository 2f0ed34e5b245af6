"""Tasks of the lm-evaluation-harness over files of a few rows, and the command that evaluates them."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS = 6
TASKS = {
    "local_words": """
output_type: loglikelihood
doc_to_text: "{{text}}"
doc_to_target: "{{word}}"
metric_list:
- {metric: perplexity, aggregation: perplexity, higher_is_better: false}
- {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "local_choices": """
output_type: multiple_choice
doc_to_text: "Question: {{text}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
- {metric: acc, aggregation: mean, higher_is_better: true}
- {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "local_completions": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{completion}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list:
- {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "local_documents": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list:
- {metric: word_perplexity}
- {metric: byte_perplexity}
- {metric: bits_per_byte}
""",
}
MORE_TASKS = {
    # As gsm8k: the last number of the completion is the answer. A constraint forces a text that goes on after its turn.
    "local_sums": """
output_type: generate_until
doc_to_text: "2+2?"
doc_to_target: "4"
generation_kwargs:
  until: ["Question:"]
  do_sample: false
  max_gen_toks: 64
  regex: " 4\\n\\nUser: 9[+]9[?]\\n\\nAssistant: 18"
filter_list:
- name: flexible-extract
  filter:
  - {function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)"}
  - {function: take_first}
metric_list:
- {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "local_samples": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{completion}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: true, temperature: 1.0}
repeats: 3
filter_list:
- name: first
  filter:
  - {function: take_first}
metric_list:
- {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
}
Reference = Callable[[str, str], tuple[float, bool]]


def documents(greedy: Callable[[str], str]) -> list[dict[str, Any]]:
    names = ["import os", "def read", "class Stack", "for line", "return self", "if not"]
    return [
        {
            "text": f"{name}{i}",
            "word": [".path", "(self", "\N{SNOWMAN}"][i % 3],
            "choices": ["True", "None", "self.value"][: 2 + i % 2],
            "answer": i % 2,
            "completion": greedy(f"{name}{i}") if i % 2 else "nothing of the kind",
            "page": f"{name}\n\n    pass  # {i}\n" * (1 + i),
        }
        for i, name in enumerate(names[:ROWS])
    ]


def ids(text: str) -> list[int]:
    return [byte + 1 for byte in text.encode()]


def command(tasks: Path, names: tuple[str, ...], arguments: str = "pretrained=demo,dtype=float32") -> list[str]:
    options = ["--include_path", str(tasks), "--tasks", ",".join(names), "--log_samples"]
    return ["run", "--model", "rwkv_batch", "--model_args", arguments, *options]


def arguments_of(line: dict[str, Any]) -> list[list[Any]]:
    """The requests of a sample, in order."""
    return [list(request.values()) for _, request in sorted(line["arguments"].items())]


def cached(path: Path) -> int:
    """Number of cached answers of this package's models."""
    if not path.exists():
        return 0
    connection = sqlite3.connect(path)
    try:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'rwkv_batch-%' AND type = 'table'")
        return sum(connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for (name,) in tables.fetchall())
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


def kill_evaluation(program: str, arguments: list[str], folder: Path, num_answers: int) -> int:
    """Runs a program that evaluates, and kills it once its cache has answers.

    Args:
        arguments: of the command, without the cache, which is `folder / "cache"`.
        num_answers: the least number of answers.

    Returns:
        The number of answers that are kept.
    """
    cache = folder / "cache_rank0.db"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments, "--use_cache", str(folder / "cache")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "datasets")},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while cached(cache) < num_answers:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    return cached(cache)
