"""Reading and checking a job file. Every wrong setting is named, with what it is and what was expected."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ..errors import ConfigurationError
from ..sampling_fields import SURROGATE
from ..sampling_params import SAMPLING_FIELDS
from ..text.chat import ChatSettings
from .config import (
    JOB_SAMPLING,
    ChatSection,
    JobConfig,
    sampling_value,
    sampling_with,
)
from .explain import explain
from .input.roles import WRITES_LOGPROBS
from .messages import listed, shown, unknown_key
from .score_section import ScoreSection
from .yaml_file import file_label, parse_yaml, read_yaml


def load_job(
    job: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    limit: int | None = None,
) -> JobConfig:
    """Reads and checks a job.

    Args:
        job: a YAML file, "-" for standard input, or a mapping with the same content. Environment variables are put
            into a file only. Top-level keys that begin with "x-" are ignored.
        overrides: settings that replace the job's: a mapping from "section.key" to a value, or texts
            "section.key=value", each with a YAML value, as after `-o` on the command line. Paths may be `pathlib`'s.
        limit: makes a trial of the job: its first rows, this many at most, with an output of its own.

    Raises:
        ConfigurationError: the file cannot be read, or settings are wrong; one line for each of these.
    """
    if not isinstance(job, str | os.PathLike | Mapping):
        raise ConfigurationError(f"job: got {shown(job)}, expected the path of a job file, or a mapping")
    place, settings = ("job", _plain(job)) if isinstance(job, Mapping) else (file_label(job), read_yaml(job))
    if not isinstance(settings, dict):
        raise ConfigurationError(
            f"{place}: got {shown(settings)}, expected a mapping with {listed(JobConfig.model_fields)}"
        )
    origins = dict(_override(settings, *override) for override in _overrides(overrides))
    settings = {key: value for key, value in settings.items() if value is not None and not _is_note(key)}
    problems = [*_check_texts(settings), *_check_sampling(settings)]
    try:
        config = JobConfig.model_validate(settings)
    except ValidationError as error:
        problems += explain(error, settings, JobConfig, {name: f"sampling.{name}" for name in SAMPLING_FIELDS})
    else:
        problems += _check_together(config)
    if problems:
        lines = [f"{origins.get(where, f'{place}: {where}')}: {what}" for where, what in problems]
        raise ConfigurationError("\n".join(lines))
    return config if limit is None else _trial(config, limit)


def _is_note(key: Any) -> bool:
    """Whether a top-level key is the file's own, for anchors and remarks, as in Docker Compose files."""
    return isinstance(key, str) and key.startswith("x-")


def _trial(job: JobConfig, limit: int) -> JobConfig:
    """Returns the job with its first rows only, and with an output and a state folder of its own."""
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConfigurationError(f"--limit: got {shown(limit)}, expected a number of rows from 1")
    rows = limit if job.input.limit is None else min(limit, job.input.limit)
    folder = f"{job.output.path.rstrip('/')}-limit-{limit}"
    return job.model_copy(
        update={
            "input": job.input.model_copy(update={"limit": rows}),
            "output": job.output.model_copy(update={"path": folder}),
            "run": job.run.model_copy(update={"state_dir": None}),
        }
    )


def _overrides(given: Mapping[str, Any] | Sequence[str]) -> Iterator[tuple[str, str, Any]]:
    """Yields for each override its name in messages, its "section.key" and its value."""
    if isinstance(given, Mapping):
        yield from ((f"overrides: {dotted}", dotted, value) for dotted, value in given.items())
        return
    for text in [given] if isinstance(given, str) else given:
        if not isinstance(text, str):
            raise ConfigurationError(f"overrides: got {shown(text)}, expected a text such as 'sampling.n=2'")
        dotted, equals, value = text.partition("=")
        if not equals or not dotted:
            raise ConfigurationError(f"-o {text}: expected section.key=value, for example sampling.temperature=0.7")
        try:
            yield f"-o {text}", dotted, parse_yaml(value)
        except ConfigurationError as error:
            raise ConfigurationError(f"-o {text}: {error}") from error


def _override(settings: dict[str, Any], origin: str, dotted: str, value: Any) -> tuple[str, str]:
    """Puts a value into `settings`. Returns its "section.key" and its name in messages."""
    if not isinstance(dotted, str) or not dotted:
        raise ConfigurationError(f"{origin}: expected names such as 'sampling.temperature'")
    *sections, key = dotted.split(".")
    target = settings
    for name in sections:
        if target.get(name) is None:
            target[name] = {}
        if not isinstance(target[name], dict):
            raise ConfigurationError(f"{origin}: {name} is {shown(target[name])}, not a section")
        target = target[name]
    target[key] = _plain(value)
    return dotted, origin


def _plain(value: Any) -> Any:
    """Returns a value as YAML gives it: mappings as new dictionaries, paths as texts."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _check_texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yields (where, what) for each text that has no encoding, in mappings and lists of any depth."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _check_texts(key, where)
            yield from _check_texts(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _check_texts(item, where)
    elif isinstance(value, str) and (found := SURROGATE.search(value)):
        yield where, f"got {shown(value)}, expected text without the lone surrogate U+{ord(found[0]):04X}"


def _check_sampling(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Replaces the sampling section by `SamplingParams`, and yields (where, what) for each wrong field."""
    section = settings.pop("sampling", {})
    if not isinstance(section, dict):
        yield "sampling", f"got {shown(section)}, expected a mapping with {listed(SAMPLING_FIELDS)}"
        return
    good = {}
    for key, value in section.items():
        if key not in SAMPLING_FIELDS:
            yield f"sampling.{key}", unknown_key(str(key), SAMPLING_FIELDS)
        elif expected := SAMPLING_FIELDS[key].expected(sampling_value(key, value)):
            yield f"sampling.{key}", f"got {shown(value)}, expected {expected}"
        else:
            good[key] = value
    try:
        settings["sampling"] = sampling_with(JOB_SAMPLING, good)
    except ValueError as error:
        where, _, what = str(error).partition(": ")
        yield where.replace("SamplingParams", "sampling"), what


def _check_together(job: JobConfig) -> Iterator[tuple[str, str]]:
    """Yields (where, what) for each setting that contradicts another one."""
    if job.chat.template is not None and job.input.template is not None:
        yield "chat.template", "got a template beside input.template, expected one of them: each makes the prompts"
    try:
        ChatSettings(**job.chat.model_dump())
    except ConfigurationError as error:
        yield str(error.setting), str(error.args[0])
    for name, declared in SAMPLING_FIELDS.items():
        value, default = getattr(job.sampling, name), getattr(JOB_SAMPLING, name)
        if value != default and not declared.in_jobs:
            expected = "true: a job writes texts" if default else f"null: {WRITES_LOGPROBS}"
            yield f"sampling.{name}", f"got {shown(value)}, expected {expected}"
    if job.task == "score":
        if job.score.choice_template is not None and job.score.continuation_template is not None:
            yield "score.continuation_template", "got a template beside score.choice_template, expected one of them"
        if job.chat != ChatSection():
            yield "chat", "got settings, expected none: task score reads no conversations"
    elif job.score != ScoreSection():
        yield "score", "got settings, expected none: the task is generate"
