"""The part `job`: whole jobs from Parquet to Parquet through `rwkv_batch.run`, with rows of many lengths."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rwkv_batch.measure.table import format_lines
from rwkv_batch.text.load_tokenizer import load_tokenizer

from ..roofline import MODELS, prefill_seconds
from .context import Context
from .decode import best_rate
from .random_model import random_checkpoint, write
from .record import Point

ROOT = Path(__file__).parents[2]
NUM_ROWS = {"0.1B": 12000, "1.5B": 6000}
MOST_ROWS = 1024
"""The largest number of slots that the engine takes on a GPU."""
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {"state_dtype": "float32", "batch_invariant": False},
    "float16": {"state_dtype": "float16", "batch_invariant": False},
    "batch_invariant": {"state_dtype": "float32", "batch_invariant": True},
}
SAMPLING = {
    "temperature": 1.0,
    "top_p": 0.85,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.3,
    "penalty_decay": 0.996,
    "ignore_eos": True,
}


def run(context: Context) -> list[str]:
    if context.is_rehearsal:
        context.record.measure("demo float32", partial(_run_job, context, "demo", "float32"))
        return _table(context.record.points)
    for model in NUM_ROWS:
        with context.record.box(context.record.seconds_left / 2 if model == "0.1B" else context.record.seconds_left):
            for variant in VARIANTS:
                context.record.measure(f"{model} {variant}", partial(_run_job, context, model, variant))
    return _table(context.record.points)


def _lengths(draw: random.Random, middle: float, spread: float, low: int, high: int) -> int:
    """Draws a length from a log-normal distribution, clipped at both ends."""
    return int(min(max(draw.lognormvariate(0, spread) * middle, low), high))


def write_prompts(path: Path, num_rows: int, words: list[str], scale: float = 1.0) -> None:
    """Writes rows with prompts of 50 to 2000 words, one token each, and completions of 16 to 512 tokens.

    Args:
        scale: factor of all lengths.
    """
    draw = random.Random(0)
    prompts, most = [], []
    for _ in range(num_rows):
        length = max(int(_lengths(draw, 250, 0.9, 50, 2000) * scale), 1)
        prompts.append("".join(draw.choices(words, k=length)))
        most.append(max(int(_lengths(draw, 100, 0.8, 16, 512) * scale), 1))
    columns = {"id": list(range(num_rows)), "prompt": prompts, "max_tokens": most}
    pq.write_table(pa.table(columns), path)


def _words(model: str) -> list[str]:
    """Lists texts that the tokenizer encodes as one token each, also one after another."""
    if model == "demo":
        return [f" {letter}" for letter in "abcdefgh"]
    tokenizer = load_tokenizer("world", vocab_size=65536, model_path=None)
    assert tokenizer is not None
    tokens = [token for token in tokenizer.token_bytes if token and token[:1] == b" " and token[1:].isalpha()]
    return [token.decode() for token in tokens if token.isascii()]


def _run_job(context: Context, model: str, variant: str) -> Point:
    folder = context.folder
    prompts, output = folder / f"{model}.parquet", folder / f"{model}-{variant}"
    if not prompts.exists():
        write_prompts(prompts, NUM_ROWS.get(model, 6), _words(model), 1.0 if model in NUM_ROWS else 0.05)
    path = "demo" if model == "demo" else str(_model_file(context, model))
    engine = VARIANTS[variant] | ({"device": "cpu", "backend": "reference"} if context.is_rehearsal else {})
    job = {
        "model": {"path": path, "tokenizer": "auto" if model == "demo" else "world"},
        "engine": engine,
        "input": {"path": str(prompts)},
        "sampling": SAMPLING,
        "output": {"path": str(output), "input_columns": ["id"], "rows_per_part": 20000},
    }
    (folder / "job.yaml").write_text(json.dumps(job))  # JSON is YAML
    command = [sys.executable, "-m", "rwkv_batch.run", str(folder / "job.yaml")]
    start = perf_counter()
    seconds = max(context.record.seconds_left, 60) + 20
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    wall = perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"the job ended with {done.returncode}: {done.stderr[-1500:]}")
    report = json.loads((folder / f"{output.name}.rwkv_batch" / "report.json").read_text())
    return _describe(context, model, variant, report, wall, prompts)


def _describe(context: Context, model: str, variant: str, report: dict[str, Any], wall: float, prompts: Path) -> Point:
    made, serving = report["tokens"]["completion_tokens"], report["serving_seconds"]
    prompt_tokens = report["tokens"]["prompt_tokens"]
    expected = sum(pq.read_table(prompts, columns=["max_tokens"])["max_tokens"].to_pylist())
    is_right = report["complete"] and not report["errors"] and made == expected
    found: Point = {
        "ok": is_right,
        "why": "" if is_right else f"errors {report['errors']}, {made} tokens of {expected}",
        "rows": sum(report["rows"].values()),
        "prompt_tokens": prompt_tokens,
        "completion_tokens": made,
        "wall_seconds": wall,
        "serving_seconds": serving,
        "completion_tokens_per_second": made / serving if serving else None,
        "all_tokens_per_second": (made + prompt_tokens) / serving if serving else None,
        "steps": report["runs"][-1]["steps"],
        "backends": report["runs"][-1].get("model", {}).get("backends"),
    }
    rate = best_rate(context.decode, model, variant, MOST_ROWS)
    if rate and model in MODELS:
        prompts_alone = prompt_tokens / 8192 * prefill_seconds(MODELS[model], 64, 128, context.card)
        found["decode_alone_seconds"] = made / rate
        found["prompts_alone_predicted_seconds"] = prompts_alone
        found["share_of_both_alone"] = (made / rate + prompts_alone) / serving
        found["share_of_decode_rate"] = made / serving / rate
    return found


def _model_file(context: Context, model: str) -> Path:
    path = context.folder / f"{model}.pth"
    return path if path.exists() else write(random_checkpoint(MODELS[model], context.device), path)


def _table(points: dict[str, Point]) -> list[str]:
    rows = [
        [
            name,
            f"{point['rows']:,}",
            f"{point['completion_tokens_per_second'] or 0:,.0f}",
            f"{point['all_tokens_per_second'] or 0:,.0f}",
            f"{point['serving_seconds']:.1f}",
            f"{point['wall_seconds']:.1f}",
            f"{point['share_of_decode_rate']:.0%}" if "share_of_decode_rate" in point else "",
            f"{point['share_of_both_alone']:.0%}" if "share_of_both_alone" in point else "",
        ]
        for name, point in points.items()
    ]
    header = [
        "job",
        "rows",
        "new tokens/s",
        "all tokens/s",
        "s serving",
        "s in all",
        "of decode",
        "of decode + prefill",
    ]
    return format_lines(header, rows)
