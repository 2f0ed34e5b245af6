"""A job file: its sections, their defaults, and error messages that say what to write instead."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError
from pydantic.fields import FieldInfo

from ..dtypes import DTYPES, STATE_DTYPES, DtypeName, StateDtypeName
from ..errors import ConfigurationError, one_of
from ..sampling_params import SamplingParams
from .yaml_file import parse_yaml, read_yaml

JOB_SAMPLING = SamplingParams(max_tokens=256, seed=0)
"""What a job samples with where its file says nothing."""

Count = Annotated[int, Field(ge=1)]


def _setting(expected: str, default: Any = ...) -> Any:
    """A field whose description completes the sentence "got X, expected …"."""
    return Field(default, description=expected)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSection(Section):
    path: str = _setting("'demo', a .pth or .safetensors file, a folder, or hf://owner/repo/file@revision")
    tokenizer: str | None = _setting("auto, world, bytes, a vocabulary or tokenizer.json file, or null", "auto")
    dtype: Literal["auto"] | DtypeName = _setting(one_of(("auto", *DTYPES)), "auto")
    quantization: str | None = _setting("the name of a weight format, or null", None)
    strategy: str | None = _setting("a ChatRWKV strategy such as 'cuda fp16 *10 -> cpu fp32', or null", None)
    init_state: str | None = _setting("a file with an initial state, or null", None)
    ln_x_eps: Annotated[float, Field(gt=0)] | None = _setting("a number above 0, or null", None)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = _setting(
        "64 hexadecimal digits, or null", None
    )


class EngineSection(Section):
    device: str = _setting("auto, cpu, cuda or cuda:<index>", "auto")
    backend: Literal["auto", "triton", "cuda", "cpu", "reference"] = _setting(
        "auto, triton, cuda, cpu or reference", "auto"
    )
    max_batch_size: Literal["auto"] | Count = _setting("auto or an integer from 1", "auto")
    max_batch_tokens: Literal["auto"] | Count = _setting("auto or an integer from 1", "auto")
    state_dtype: StateDtypeName = _setting(one_of(STATE_DTYPES), "float32")
    prefix_sharing: bool = _setting("true or false", True)
    prefix_host_gib: Annotated[float, Field(ge=0, allow_inf_nan=False)] = _setting("a number of GiB from 0", 1.0)
    batch_invariant: bool = _setting("true or false", True)


class InputSection(Section):
    path: str | Annotated[list[str], Field(min_length=1)] = _setting("a file, folder, glob or URL, or a list of them")
    format: Literal["auto", "parquet", "jsonl", "openai-batch"] = _setting(
        "auto, parquet, jsonl or openai-batch", "auto"
    )
    columns: dict[str, str | None] = _setting("a mapping from a column's part to its name, or to null: not used", {})
    template: str | None = _setting("a Jinja template, a file that holds one, or null", None)
    limit: Count | None = _setting("a number of rows from 1, or null", None)
    max_prompt_tokens: Count | None = _setting("an integer from 1, or null", None)


class ScoreSection(Section):
    add_bos_token: bool = _setting("true or false", False)


class OutputSection(Section):
    path: str = _setting("a folder on a local disk")
    rows_per_part: Count = _setting("an integer from 1", 20000)
    flush_seconds: Annotated[float, Field(ge=0, le=86400)] = _setting("a number of seconds from 0 to 86400", 30.0)
    input_columns: Literal["all", "none"] | list[str] = _setting("all, none, or a list of column names", "all")
    token_ids: bool = _setting("true or false", False)
    logprobs: bool = _setting("true or false", False)


class RunSection(Section):
    state_dir: str | None = _setting("a folder, or null for the output folder's name with .rwkv_batch added", None)
    on_row_error: Literal["continue", "stop"] = _setting("continue or stop", "continue")
    backend: Literal["local"] = _setting("local", "local")


class JobConfig(Section):
    """One job: every setting with its default filled in.

    Make one with `load_job`; the sections are attributes of the same names as in the file.
    """

    task: Literal["generate", "score"] = _setting("generate or score", "generate")
    model: ModelSection
    engine: EngineSection = EngineSection()
    input: InputSection
    sampling: InstanceOf[SamplingParams] = JOB_SAMPLING
    score: ScoreSection = ScoreSection()
    output: OutputSection
    run: RunSection = RunSection()


def load_job(
    job: str | os.PathLike[str] | Mapping[str, Any], overrides: Mapping[str, Any] | Sequence[str] = ()
) -> JobConfig:
    """Read and check a job.

    Args:
        job: a YAML file, or what would stand in it.
        overrides: settings that replace the job's: a mapping from "section.key" to a value, or texts
            "section.key=value", each with a YAML value, as after `-o` on the command line. Paths may be `pathlib`'s.

    Raises:
        ConfigurationError: the file cannot be read, or settings are wrong: one line for each of them.
    """
    if not isinstance(job, str | os.PathLike | Mapping):
        raise ConfigurationError(f"job: got {_shown(job)}, expected the path of a job file, or a mapping")
    place, settings = ("job", _plain(job)) if isinstance(job, Mapping) else (os.fspath(job), read_yaml(job))
    if not isinstance(settings, dict):
        raise ConfigurationError(
            f"{place}: got {_shown(settings)}, expected a mapping with {_names(JobConfig.model_fields)}"
        )
    origins = dict(_override(settings, *override) for override in _overrides(overrides))
    settings = {key: value for key, value in settings.items() if value is not None}
    problems = list(_check_sampling(settings))
    try:
        config = JobConfig.model_validate(settings)
    except ValidationError as error:
        problems += _explain(error, settings)
    else:
        problems += _check_together(config)
    if problems:
        lines = [
            f"{origins[where]}: {what}" if where in origins else f"{place}: {where}: {what}" for where, what in problems
        ]
        raise ConfigurationError("\n".join(lines))
    return config


def _overrides(given: Mapping[str, Any] | Sequence[str]) -> Iterator[tuple[str, str, Any]]:
    """For each: how messages call it, its "section.key", its value."""
    if isinstance(given, Mapping):
        yield from ((f"overrides: {dotted}", dotted, value) for dotted, value in given.items())
        return
    for text in [given] if isinstance(given, str) else given:
        if not isinstance(text, str):
            raise ConfigurationError(f"overrides: got {_shown(text)}, expected a text such as 'sampling.n=2'")
        dotted, equals, value = text.partition("=")
        if not equals or not dotted:
            raise ConfigurationError(f"-o {text}: expected section.key=value, for example sampling.temperature=0.7")
        try:
            yield f"-o {text}", dotted, parse_yaml(value)
        except ConfigurationError as error:
            raise ConfigurationError(f"-o {text}: {error}") from error


def _override(settings: dict[str, Any], origin: str, dotted: str, value: Any) -> tuple[str, str]:
    """Put a value into `settings` in place. Returns its place and its origin."""
    if not isinstance(dotted, str) or not dotted:
        raise ConfigurationError(f"{origin}: expected names such as 'sampling.temperature'")
    *sections, key = dotted.split(".")
    target = settings
    for name in sections:
        if target.get(name) is None:
            target[name] = {}
        if not isinstance(target[name], dict):
            raise ConfigurationError(f"{origin}: {name} is {_shown(target[name])}, not a section")
        target = target[name]
    target[key] = _plain(value)
    return dotted, origin


def _plain(value: Any) -> Any:
    """As YAML would give it: mappings as dictionaries of our own, which may be changed, and paths as texts."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _check_sampling(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Replace the sampling section by `SamplingParams`, yielding what is wrong with it."""
    section = settings.pop("sampling", {})
    known = SamplingParams.field_names()
    if not isinstance(section, dict):
        yield "sampling", f"got {_shown(section)}, expected a mapping with {_names(known)}"
        return
    good = {}
    for key, value in section.items():
        if key not in known:
            yield f"sampling.{key}", _unknown(str(key), known)
            continue
        try:
            sampling_with(SamplingParams(max_tokens=2**31 - 1), {key: value})
        except ValueError as error:
            what = str(error).partition(": ")[2]
            yield f"sampling.{key}", what.replace(f"got {value!r}", f"got {_shown(value)}", 1)
        else:
            good[key] = value
    try:
        settings["sampling"] = sampling_with(JOB_SAMPLING, good)
    except ValueError as error:
        where, _, what = str(error).partition(": ")
        yield where.replace("SamplingParams", "sampling"), what


def sampling_with(base: SamplingParams, values: Mapping[str, Any]) -> SamplingParams:
    """`base` with some fields replaced; a `seed` of None keeps the base's.

    Raises:
        ValueError: a value is of the wrong type or out of range; "SamplingParams.<field>: got …, expected …".
    """
    values = {name: value for name, value in values.items() if name != "seed" or value is not None}
    if isinstance(values.get("logit_bias"), dict):
        values["logit_bias"] = {_token_id(key): bias for key, bias in values["logit_bias"].items()}
    return replace(base, **values)


def _token_id(key: Any) -> Any:
    """JSON has no integer keys: there a token id is a string of digits."""
    return int(key) if isinstance(key, str) and key.isdecimal() else key


def _check_together(job: JobConfig) -> Iterator[tuple[str, str]]:
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(job.sampling, name)
        if value is not None:
            yield f"sampling.{name}", f"got {value}, expected null: output.logprobs is what writes log-probabilities"
    if job.task == "score":
        if job.input.template is not None:
            yield (
                "input.template",
                "got a template, expected null: task score reads context and continuations from columns",
            )
    elif job.score != ScoreSection():
        yield "score", "got settings, expected none: the task is generate"


def _explain(error: ValidationError, settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """One (where, what) for each setting that pydantic refused."""
    seen = set()
    for problem in error.errors(include_url=False):
        keys, field, siblings = _locate(problem["loc"])
        where = ".".join(keys)
        if where in seen:
            continue
        seen.add(where)
        if problem["type"] in ("extra_forbidden", "invalid_key"):
            yield where, _unknown(keys[-1], siblings)
        elif problem["type"] == "missing":
            yield where, f"missing, expected {_expected(field)}"
        else:
            yield where, f"got {_shown(_value(settings, keys))}, expected {_expected(field)}"


def _locate(location: tuple[int | str, ...]) -> tuple[list[str], FieldInfo | None, list[str]]:
    """Follow pydantic's location to the setting: its keys, its field, and the names beside it."""
    section: Any = JobConfig
    keys: list[str] = []
    field, siblings = None, list(JobConfig.model_fields)
    for key in location:
        siblings = list(section.model_fields)
        keys.append(str(key))
        field = section.model_fields.get(key)
        section = field.annotation if field is not None else None
        if not (isinstance(section, type) and issubclass(section, Section)):
            break
    return keys, field, siblings


def _expected(field: FieldInfo | None) -> str:
    if field is None:
        return "a mapping"
    if field.description is None and isinstance(field.annotation, type) and issubclass(field.annotation, Section):
        return f"a mapping with {_names(field.annotation.model_fields)}"
    return str(field.description)


def _value(settings: Any, keys: list[str]) -> Any:
    for key in keys:
        settings = settings[key]
    return settings


def _unknown(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown key (did you mean {close[0]!r}?)" if close else f"unknown key (known: {_names(known)})"


def _names(names: Any) -> str:
    return ", ".join(names)


def _shown(value: Any) -> str:
    text = {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
    return text if len(text) <= 80 else text[:77] + "..."
