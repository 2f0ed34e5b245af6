"""The schema of job files agrees with what `load_job` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from rwkv_batch import cli
from rwkv_batch.commands.schema import job_schema
from rwkv_batch.errors import ConfigurationError
from rwkv_batch.job.config import describe_settings
from rwkv_batch.job.load import load_job

ROOT = Path(__file__).parent.parent.parent
SUITE = ROOT / "jobs" / "suite.yaml"
JOBS = sorted({*(ROOT / "jobs").glob("*.yaml")} - {SUITE})
MINIMAL = {"model": {"path": "demo"}, "input": {"path": "a.parquet"}, "output": {"path": "out"}}


def validator() -> Any:
    jsonschema.Draft202012Validator.check_schema(job_schema())
    return jsonschema.Draft202012Validator(job_schema())


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_the_example_jobs_are_valid(path: Path) -> None:
    text = path.read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=job.schema.json"
    validator().validate(yaml.safe_load(text))


def test_the_file_beside_the_example_jobs_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    assert capsys.readouterr().out == (ROOT / "jobs" / "job.schema.json").read_text()


def test_the_schema_of_suites(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema", "--suite"]) == 0
    text = capsys.readouterr().out
    assert text == (ROOT / "jobs" / "suite.schema.json").read_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(text))
    known = jsonschema.Draft202012Validator(json.loads(text))
    assert SUITE.read_text().splitlines()[0] == "# yaml-language-server: $schema=suite.schema.json"
    suite = yaml.safe_load(SUITE.read_text())
    known.validate(suite)
    grade = {"name": "a", "job": "a.yaml", "set": {"sampling.n": 2}, "grade": {"answer": "answer", "take": "last"}}
    for right in ({"lm_eval": "arc", "limit": 0.5}, {"lm_eval": ["arc"], "chat_format": None}, grade):
        known.validate({**suite, "tasks": [right], "x-notes": 3, "engine": None})
    wrong_tasks = ({"lm_eval": "arc", "limits": 3}, {"name": "a"}, {**grade, "grade": {"take": "last"}}, {})
    wrong: list[dict[str, Any]] = [{"tasks": [one]} for one in wrong_tasks] + [
        {"tasks": []},
        {"model": {"path": "x"}},
        {"output": {}},
    ]
    assert [one for one in wrong if known.is_valid({**suite, **one})] == []


def test_every_setting_has_its_meaning_and_default() -> None:
    for setting in describe_settings():
        schema = job_schema()
        for key in setting.name.split("."):
            schema = schema["properties"][key]
        assert setting.doc.split(". ")[0] in schema["description"], setting.name
        assert setting.is_required or json.loads(json.dumps(setting.default)) == schema["default"], setting.name


def test_every_default_is_valid() -> None:
    full: dict[str, Any] = json.loads(json.dumps(MINIMAL))
    for setting in describe_settings():
        *sections, key = setting.name.split(".")
        if not setting.is_required:
            place = full
            for section in sections:
                place = place.setdefault(section, {})
            place[key] = setting.default
    validator().validate(full)


VALUES: list[tuple[str, Any]] = [
    ("task", "score"),
    ("task", "rank"),
    ("sampling.temperature", 0.5),
    ("sampling.temperature", -1),
    ("sampling.temperature", "hot"),
    ("sampling.repetition_penalty", 0),
    ("sampling.n", 1.5),
    ("sampling.stop", ["a", "b"]),
    ("sampling.stop", ""),
    ("sampling.max_tokens", None),
    ("sampling.top_p_order", "rwkv"),
    ("sampling.top_p_order", "other"),
    ("sampling.logit_bias", {"3": 1.5}),
    ("sampling.logit_bias", {"x": 1.5}),
    ("sampling.allowed_token_ids", []),
    ("sampling.json_schema", {"type": "object"}),
    ("sampling.temprature", 1),
    ("sampling.logprobs", 3),
    ("model.quantization", "int8"),
    ("model.quantization", "int3"),
    ("model.dtype", "bfloat16"),
    ("model.dtype", "float8"),
    ("model.sha256", "0" * 64),
    ("model.sha256", "0"),
    ("engine.max_batch_size", 4),
    ("engine.max_batch_size", 0),
    ("engine.memory_share", 1),
    ("engine.memory_share", 1.5),
    ("input.path", ["a", "b"]),
    ("input.path", []),
    ("input.format", "parquet"),
    ("input.format", "xlsx"),
    ("input.columns", {"n": None}),
    ("chat.format", "bot"),
    ("chat.format", "ball"),
    ("output.extra", ["prompt"]),
    ("output.extra", ["prompts"]),
    ("output.input_columns", "none"),
    ("output.input_columns", ["a"]),
    ("output.input_columns", "some"),
    ("run.on_row_error", "stop"),
    ("run.on_row_error", "go"),
    ("runs", {}),
    ("x-remark", {"a": 1}),
    ("engine", None),
]


@pytest.mark.parametrize(("setting", "value"), VALUES, ids=lambda value: str(value)[:30])
def test_the_schema_takes_what_a_job_takes(setting: str, value: Any) -> None:
    job: dict[str, Any] = json.loads(json.dumps(MINIMAL))
    section, _, key = setting.partition(".")
    if key:
        job.setdefault(section, {})[key] = value
    else:
        job[section] = value
    try:
        load_job(job)
        is_right = True
    except ConfigurationError:
        is_right = False
    assert validator().is_valid(job) == is_right


def test_a_variable_may_stand_for_any_value() -> None:
    job = {**MINIMAL, "sampling": {"temperature": "${HEAT:-1.0}", "stop": "${STOP}"}, "task": "${TASK}"}
    validator().validate(job)


def test_what_is_required() -> None:
    for section in MINIMAL:
        assert not validator().is_valid({name: value for name, value in MINIMAL.items() if name != section})
        assert not validator().is_valid({**MINIMAL, section: {}})
