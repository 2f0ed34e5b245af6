"""What a job's results depend on, so that a resumed job never mixes two kinds of results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from ..config import JobConfig
from .columns import Columns

FORMAT = 1
"""Raised when the meaning of segments, parts or random streams changes."""


def result_settings(job: JobConfig, columns: Columns, schema: pa.Schema, model: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that changes a row's results, by dotted name. Slots, device, flush interval and shards don't.

    Args:
        schema: of the parts.
        model: "fingerprint" of the weights and initial state, "tokenizer" fingerprint or None, and the "dtype" in use.
    """
    settings: dict[str, Any] = {
        "format": FORMAT,
        "task": job.task,
        **{f"model.{name}": value for name, value in model.items()},
        "model.quantization": job.model.quantization,
        "model.strategy": job.model.strategy,
        "model.ln_x_eps": job.model.ln_x_eps,
        "engine.state_dtype": job.engine.state_dtype,
        "engine.batch_invariant": job.engine.batch_invariant,
        "input.template": columns.template,
        "input.max_prompt_tokens": job.input.max_prompt_tokens,
        **{f"input.columns.{part}": name for part, name in columns.parts.items()},
        "output.columns": [f"{field.name}: {field.type}" for field in schema],
    }
    if job.task == "generate":
        settings |= {f"sampling.{field}": value for field, value in asdict(job.sampling).items()}
        settings |= {f"input.columns.{field}": name for field, name in columns.sampling.items()}
        settings["input.columns.sampling"] = columns.sampling_struct
    else:
        settings["input.columns.answer"] = columns.answer
        settings |= {f"score.{name}": value for name, value in job.score.model_dump().items()}
    return {name: _canonical(value) for name, value in settings.items()}


def fingerprint(settings: Mapping[str, Any]) -> str:
    """SHA-256 of the settings, hexadecimal."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each setting that differs."""
    return [
        f"{name}: {_shown(old, name)} when it was started, {_shown(new, name)} now"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _canonical(value: Any) -> Any:
    """The form in which a setting survives JSON, and in which 1 and 1.0 are the same."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value


def _shown(settings: Mapping[str, Any], name: str) -> str:
    text = json.dumps(settings[name], ensure_ascii=False) if name in settings else "not set"
    return text if len(text) <= 80 else text[:77] + "..."
