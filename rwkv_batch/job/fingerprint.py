"""The fingerprint of a job: the settings that its results depend on, so that a resumed job never mixes two kinds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from ..sampling_params import CONSTRAINTS
from .config import JOB_SAMPLING, JobConfig
from .input.columns import Columns
from .messages import shortened
from .section import Section

FORMAT = 1
"""A number that grows when the meaning of segments, parts or random streams changes."""

CONSTRAINT_RULES = "sampling.constraint_rules"
"""A setting that no job file has: job.json records it for jobs whose rows may have constraints."""
RULES, FORMER_RULES = "llguidance 1", "xgrammar"
"""What finds the tokens that constraints allow. The number grows when the same constraint allows other tokens. Jobs of
versions that recorded nothing had the former."""

HALF_STATES = "rounding of float16 states"
"""A name among the backends that job.json records, for jobs with float16 states."""
ROUNDING, FORMER_ROUNDING = "2", "1"
"""The random bits of models/rounding.py. The number grows when they change. Jobs of versions that recorded nothing had
the former."""

HARMLESS = frozenset(
    {
        "engine.device",
        "engine.backend",
        "engine.max_batch_size",
        "engine.max_batch_tokens",
        "engine.admission_delay_ms",
        "engine.prefix_sharing",
        "engine.prefix_host_gib",
        "engine.constraint_timeout",
        "engine.memory_share",
        "engine.state_write_interval",
        "score.group_by",
        "output.flush_seconds",
        "output.compression",
        "output.row_group_rows",
        "run.state_dir",
        "run.segments",
        "run.on_row_error",
        "run.backend",
        "run.workers",
        "run.devices",
        "run.worker_timeout",
        "run.metrics_port",
        "run.ray",
        "report.show_text",
        "report.samples",
    }
)
"""Settings that change no result. A setting that is not in this list changes results."""

RESOLVED = frozenset(
    {
        "model.path",
        "model.init_state",
        "model.sha256",
        "input.path",
        "input.format",
        "input.columns",
        "input.limit",
        "output.path",
        "output.rows_per_part",
        "output.input_columns",
        "output.extra",
        "output.token_ids",
        "output.logprobs",
    }
)
"""Settings that are not compared themselves, but by their effect: the model's fingerprint, the input's manifest, the
plan, the columns."""

PASSED = "output.input_columns"
"""A setting. The value that job.json records for it is a list: the names of the columns that parts repeat."""

FORMER_DEFAULTS: Mapping[str, Any] = {}
"""Settings that job files no longer have → the default that each had."""


def result_settings(
    job: JobConfig,
    columns: Columns,
    passed: pa.Schema,
    results: pa.Schema,
    model: Mapping[str, Any],
    chat: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns everything that changes a row's results, by dotted name: all settings that are not listed above.

    Args:
        passed: the columns of parts that repeat the input's. Their types follow from the input.
        results: the other columns of parts.
        chat: in place of the section, what conversations are rendered with, by dotted name; None where there are none.
        model: "fingerprint" of the weights and initial state, "tokenizer" fingerprint or None, and the "dtype" in use.
    """
    unused = "score." if job.task == "generate" else "sampling."
    settings: dict[str, Any] = {
        "format": FORMAT,
        **{name: value for name, value in flat_settings(job).items() if not name.startswith(unused)},
        **{f"model.{name}": value for name, value in model.items()},
        "input.template": columns.template,
        **{f"input.columns.{part}": name for part, name in columns.roles.items()},
        "output.columns": [f"{field.name}: {field.type}" for field in results],
    }
    if job.task == "generate":
        settings |= {f"input.columns.{field}": name for field, name in columns.sampling.items()}
        settings["input.columns.sampling"] = columns.sampling_struct
        if columns.have_constraints or any(getattr(job.sampling, name) is not None for name in CONSTRAINTS):
            settings[CONSTRAINT_RULES] = RULES
    else:
        settings["input.columns.answer"] = columns.answer
        if columns.scored is not None:
            settings[columns.scored.template_setting] = columns.scored.template
            settings["score.answer"] = columns.scored.recorded_answer
    if chat is not None:
        settings = {name: value for name, value in settings.items() if not name.startswith("chat.")} | {**chat}
        settings |= {f"input.columns.{role}": name for role, name in columns.chat.items() if chat}
    compared = {name: value for name, value in settings.items() if name not in HARMLESS | RESOLVED}
    return {name: _canonical(value) for name, value in {**compared, PASSED: passed.names}.items()}


def with_passed_columns(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Returns recorded settings with `PASSED`. Earlier versions recorded all columns of parts in one list.

    Args:
        old: the recorded settings.
        new: the present settings.
    """
    columns, results = old.get("output.columns", []), new["output.columns"]
    passed = len(columns) - len(results)
    if PASSED in old or columns[passed:] != results:
        return {PASSED: new[PASSED], **old}
    names = [column.partition(": ")[0] for column in columns[:passed]]
    # A name may have a colon in it. The list without types is then the present one, if it fits.
    fits = len(new[PASSED]) == passed and all(
        column.startswith(f"{name}: ") for column, name in zip(columns, new[PASSED], strict=False)
    )
    return {**old, "output.columns": results, PASSED: new[PASSED] if fits else names}


def fingerprint(settings: Mapping[str, Any]) -> str:
    """SHA-256 of the settings, hexadecimal."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns a line for each setting that differs.

    A setting that one side lacks, because a version added or removed it, counts as its default. The default of a
    setting that names a column is null.
    """
    defaults = {**FORMER_DEFAULTS, **default_settings()}
    names = {*old, *new} - {CONSTRAINT_RULES}  # see `other_rules`
    old, new = ({name: side.get(name, defaults.get(name)) for name in names} for side in (old, new))
    return [
        f"{name}: {_json(old[name])} when it was started, {_json(new[name])} now"
        for name in sorted(old)
        if old[name] != new[name]
    ]


def other_rules(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns a line where rows of the job may have constraints, and were begun with other rules than `RULES`.

    Args:
        old: the recorded settings.
        new: the present settings.
    """
    if CONSTRAINT_RULES not in new or (found := old.get(CONSTRAINT_RULES, FORMER_RULES)) == new[CONSTRAINT_RULES]:
        return []
    return [
        f"json_schema, regex and grammar: {_json(found)} found the allowed tokens when it was started, "
        f"{_json(new[CONSTRAINT_RULES])} does now, and allows others; the version that started the job can finish it"
    ]


def default_settings() -> dict[str, Any]:
    """Returns the defaults of all settings by dotted name, without the settings that every file must have."""
    defaults = {f"sampling.{name}": value for name, value in asdict(JOB_SAMPLING).items()}
    for name, field in JobConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            inner = field.annotation.model_fields.items()
            defaults |= {f"{name}.{key}": setting.default for key, setting in inner if not setting.is_required()}
        elif name != "sampling":
            defaults[name] = field.default
    return {name: _canonical(value) for name, value in defaults.items()}


def flat_settings(job: JobConfig) -> dict[str, Any]:
    """Returns all settings of a job by dotted name."""
    flat = {f"sampling.{name}": value for name, value in asdict(job.sampling).items()}
    for name, value in job.model_dump(exclude={"sampling"}).items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _canonical(value: Any) -> Any:
    """Returns a value that JSON keeps unchanged, and in which 1 and 1.0 are the same."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value


def _json(value: Any) -> str:
    return shortened(json.dumps(value, ensure_ascii=False))
