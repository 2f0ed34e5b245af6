"""The command `schema`: the JSON Schema of a job file or a suite file, for editors that complete and check."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any, get_args

from .. import __version__
from ..job.config import JOB_SAMPLING, EngineSection, JobConfig, ModelSection, expected_of, is_section
from ..job.input.formats import FORMATS
from ..models.matrices.quantization import QUANTIZATIONS
from ..sampling_fields import Biases, Choice, Flag, Integer, Kind, Number, Schema, Strings, Text, TokenIds
from ..sampling_params import SAMPLING_FIELDS, SamplingParams
from ..suite.config import HarnessSection, JobSection, SuiteConfig
from ..suite.grade_section import GradeSection
from ..text.chat import format_names

Json = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
VARIABLE: Json = {"type": "string", "pattern": r"\$\{"}
"""The name of an environment variable, which may stand in place of any value."""
NAMES: Mapping[str, list[str | None]] = {
    "model.quantization": [*QUANTIZATIONS, None],
    "input.format": ["auto", *FORMATS],
    "chat.format": list(format_names()),
}
"""Setting whose names are known to a function, and not to its type → these names."""

OWN = ("title", "description", "default", "expected")
"""Keys that pydantic puts beside the values of a setting."""


def job_schema() -> Json:
    """Returns the JSON Schema of a job file, in draft 2020-12: every setting with its meaning and its default."""
    properties: Json = {}
    required = []
    for name, field in JobConfig.model_fields.items():
        if field.is_required():
            required.append(name)
        if name == "sampling":
            properties[name] = _sampling()
        elif is_section(field.annotation):
            properties[name] = _section(name, field.annotation)
        else:
            names = list(get_args(field.annotation))
            properties[name] = _described({"enum": names}, field.description or "", field.default)
    return {
        "$schema": DIALECT,
        "title": "Job file of rwkv_batch",
        "description": f"A job: rows in, completions or scores out. rwkv_batch {__version__}.",
        "type": "object",
        "properties": properties,
        "patternProperties": {"^x-": {"description": "A remark, or a place for anchors; ignored."}},
        "required": required,
        "additionalProperties": False,
    }


def suite_schema() -> Json:
    """Returns the JSON Schema of a suite file, in draft 2020-12."""
    model = _section("model", ModelSection)
    of_checkpoint = ("path", "sha256")
    model["properties"] = {name: value for name, value in model["properties"].items() if name not in of_checkpoint}
    del model["required"]
    model["type"] = ["object", "null"]
    job = _section("tasks", JobSection)
    job["properties"]["grade"] = _section("grade", GradeSection)
    made = _section("", SuiteConfig)
    made["properties"] |= {"model": model, "engine": _section("engine", EngineSection)}
    made["properties"]["tasks"] |= {
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [_section("tasks", HarnessSection), job]},
    }
    del made["properties"]["tasks"]["anyOf"]
    return {
        "$schema": DIALECT,
        "title": "Suite file of rwkv_batch",
        "patternProperties": {"^x-": {"description": "A remark, or a place for anchors; ignored."}},
        **made,
    }


def _section(name: str, section: Any) -> Json:
    """The schema of a section."""
    made = section.model_json_schema()
    properties = {}
    for key, field in section.model_fields.items():
        if is_section(field.annotation):
            properties[key] = _section(f"{name}.{key}", field.annotation)
            continue
        value = {part: item for part, item in made["properties"][key].items() if part not in OWN}
        if (names := NAMES.get(f"{name}.{key}")) is not None:
            value = {"enum": names}
        text = f"{field.description} Values: {expected_of(field)}."
        properties[key] = _described(value, text, field.default, field.is_required())
    found: Json = {
        "type": ["object", "null"],
        "description": (section.__doc__ or "").strip(),
        "properties": properties,
        "additionalProperties": False,
    }
    if made.get("required"):
        found |= {"required": made["required"], "type": "object"}
    return found


def _sampling() -> Json:
    """The schema of the section `sampling`."""
    docs = SamplingParams.field_docs()
    properties = {}
    for key, declared in SAMPLING_FIELDS.items():
        if declared.in_jobs:
            value = _of_kind(declared.kind)
            value = {"anyOf": [value, {"type": "null"}]} if declared.is_optional or key == "seed" else value
            text = f"{docs[key][0].upper()}{docs[key][1:]} Values: {declared.description}."
            properties[key] = _described(value, text, getattr(JOB_SAMPLING, key))
    return {
        "type": ["object", "null"],
        "description": "How tokens are sampled.",
        "properties": properties,
        "additionalProperties": False,
    }


def _described(value: Json, text: str, default: Any, is_required: bool = False) -> Json:
    """The schema of a setting: its values or a variable, with its meaning and default."""
    is_any_text = value == {"type": "string"}
    inner = value if is_any_text else {"anyOf": [*_alternatives(value), VARIABLE]}
    return {"description": text, **({} if is_required else {"default": default}), **inner}


def _alternatives(value: Json) -> list[Json]:
    return value["anyOf"] if value.keys() == {"anyOf"} else [value]


@singledispatch
def _of_kind(kind: Kind) -> Json:
    """The schema of the values of a sampling field."""
    raise TypeError(f"no schema for {type(kind).__name__}")


@_of_kind.register
def _(kind: Integer) -> Json:
    return {"type": "integer", "minimum": kind.low, "maximum": kind.high}


@_of_kind.register
def _(kind: Number) -> Json:
    return {"type": "number", "exclusiveMinimum" if kind.is_open else "minimum": kind.low, "maximum": kind.high}


@_of_kind.register
def _(kind: Flag) -> Json:
    return {"type": "boolean"}


@_of_kind.register
def _(kind: Choice) -> Json:
    return {"enum": list(kind.names)}


@_of_kind.register
def _(kind: Text) -> Json:
    return {"type": "string"}


@_of_kind.register
def _(kind: Schema) -> Json:
    return {"type": ["string", "object"]}


@_of_kind.register
def _(kind: Strings) -> Json:
    text: Json = {"type": "string", "minLength": 1}
    return {"anyOf": [text, {"type": "array", "items": text}]}


@_of_kind.register
def _(kind: TokenIds) -> Json:
    return {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": int(not kind.may_be_empty)}


@_of_kind.register
def _(kind: Biases) -> Json:
    return {"type": "object", "patternProperties": {"^[0-9]+$": {"type": "number"}}, "additionalProperties": False}
