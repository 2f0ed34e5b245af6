"""Suite files: what they mean, and every mistake, all at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.suite.load import load_suite
from rwkv_batch.suite.tasks import HarnessTask, JobTask
from suite.suites import GRADE, write_suite


def problems(folder: Path, **settings: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_suite(write_suite(folder, **settings))
    return [line.replace(f"{folder}/", "") for line in str(caught.value).splitlines()]


def task(folder: Path, task_name: str, /, **settings: Any) -> Any:
    return next(one for one in load_suite(write_suite(folder, **settings)).tasks if one.name == task_name)


def entry(**settings: Any) -> dict[str, Any]:
    return {"name": "sums", "job": "sums.yaml", "grade": GRADE, **settings}


def test_a_suite(tmp_path: Path) -> None:
    suite = load_suite(write_suite(tmp_path))
    assert [(one.name, one.kind) for one in suite.tasks] == [
        ("arc", "lm_eval"),
        ("winogrande", "lm_eval"),
        ("sums", "job"),
        ("choices", "job"),
    ]
    arc, _, sums, choices = suite.tasks
    assert isinstance(arc, HarnessTask)
    assert (arc.task, arc.section.limit, arc.section.num_fewshot) == ("arc", 5, None)
    assert isinstance(sums, JobTask)
    assert sums.job == str(tmp_path / "sums.yaml")
    assert sums.overrides == {"model.tokenizer": "bytes", "sampling.n": 2}
    assert sums.grade is not None
    assert sums.grade.answer == "answer"
    assert isinstance(choices, JobTask)
    assert (choices.is_score, choices.grade) == (True, None)
    assert (suite.name, suite.output, suite.model.tokenizer) == ("suite", str(tmp_path / "out"), "bytes")
    assert load_suite(str(tmp_path / "suite.yaml"), str(tmp_path / "other")).output == str(tmp_path / "other")


def test_every_mistake_is_named(tmp_path: Path) -> None:
    tasks = [
        {"lm_eval": "arc", "limitt": 3, "num_fewshot": -1},
        {"lm_eval": [], "limit": 1.5},
        {"jobb": "sums.yaml"},
        {"lm_eval": "arc", "job": "sums.yaml"},
        entry(name="a/b", set={"sampling.temprature": 1}),
        entry(set={"output.path": "here"}),
        entry(job="none.yaml"),
        entry(grade={"answer": 3}),
        {"name": "ungraded", "job": "sums.yaml"},
        {"name": "graded", "job": "choices.yaml", "grade": GRADE},
        entry(name="no_input", set={"input.path": str(tmp_path / "none.jsonl")}),
        entry(name="no_column", set={"input.columns": {"prompt": "question"}}),
        entry(name="typo", set={"sampling.temprature": 1}),
    ]
    found = problems(tmp_path, tasks=tasks, model={"path": "x", "dtpye": 1}, engine={"max_batch_size": 0})
    assert found == [
        "suite.yaml: model.dtpye: unknown key (did you mean 'dtype'?)",
        "suite.yaml: model.path: got a setting of one checkpoint, expected none: --models names them",
        "suite.yaml: engine.max_batch_size: got 0, expected auto or an integer from 1",
    ]
    found = problems(tmp_path, tasks=tasks)
    expected = [
        "tasks[0].limitt: unknown key (did you mean 'limit'?)",
        "tasks[0].num_fewshot: got -1, expected an integer from 0, or null",
        "tasks[1].lm_eval: got [], expected a name, or a list of names",
        "tasks[1].limit: got 1.5, expected an integer from 1, a number between 0 and 1, or null",
        "tasks[2]: unknown key (did you mean 'job'?), expected one of the keys lm_eval and job",
        "tasks[3]: got lm_eval and job, expected one of the keys lm_eval and job",
        "tasks[4].name: got 'a/b', expected letters, digits and . _ + = @ -, not beginning with a dot",
        "tasks[5].set.output.path: the suite gives this setting for each checkpoint; leave it out",
        "tasks[6]: none.yaml: No such file or directory; expected a job file in YAML",
        "tasks[7].grade.answer: got 3, expected the name of a column",
        "tasks[8].grade: missing, expected how completions are graded",
        "tasks[9].grade: got settings, expected none: the task is score, which has metrics of its own",
        "tasks[12]: set.sampling.temprature: unknown key (did you mean 'temperature'?)",
    ]
    inputs = ("suite.yaml: tasks[10]", "suite.yaml: tasks[11]")
    assert {line for line in found if not line.startswith(inputs)} == {f"suite.yaml: {line}" for line in expected}
    (no_input,) = (line for line in found if "tasks[10]" in line)
    (no_column,) = (line for line in found if "tasks[11]" in line)
    assert "sums.yaml: input.path" in no_input
    assert "question" in no_column


def test_names_are_unique(tmp_path: Path) -> None:
    twice: list[dict[str, Any]] = [{"lm_eval": ["arc", "piqa"]}, {"lm_eval": "arc", "num_fewshot": 5}]
    assert problems(tmp_path, tasks=twice) == [
        "suite.yaml: tasks: 2 tasks have the name 'arc', expected different ones: set name"
    ]
    twice[1]["name"] = "arc_5"
    names = [one.name for one in load_suite(write_suite(tmp_path, tasks=twice)).tasks]
    assert names == ["arc", "piqa", "arc_5"]
    several = load_suite(write_suite(tmp_path, tasks=[{"lm_eval": ["arc", "piqa"], "name": "chat"}])).tasks
    assert [one.name for one in several] == ["chat-arc", "chat-piqa"]


def test_what_is_no_suite(tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    for text, expected in {
        "- 3": "got [3], expected a mapping",
        "tasks: 3": "tasks: got 3",
        "{": "not valid YAML",
    }.items():
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=expected.replace("[", r"\[")):
            load_suite(str(file))
    assert problems(tmp_path, output={"path": "s3://bucket/out"}) == [
        "suite.yaml: output.path: got 's3://bucket/out', expected a folder on a local disk"
    ]
    assert problems(tmp_path, output=None) == ["suite.yaml: output: missing, expected a mapping with path"]


def fingerprints(folder: Path, task_name: str, /, **settings: Any) -> tuple[str, str]:
    """The fingerprint of a task's result, and the folder of its rows."""
    found = task(folder, task_name, **settings)
    return found.fingerprint("abc"), found.folder_name("abc") if isinstance(found, JobTask) else ""


def test_fingerprints_tell_what_results_depend_on(tmp_path: Path) -> None:
    assert fingerprints(tmp_path, "arc") == fingerprints(tmp_path, "arc")
    assert task(tmp_path, "arc").fingerprint("abc") != task(tmp_path, "arc").fingerprint("abd")
    assert fingerprints(tmp_path, "arc") != fingerprints(tmp_path, "winogrande")
    arc, sums = fingerprints(tmp_path, "arc"), fingerprints(tmp_path, "sums")
    for harmless in ({"engine": {"max_batch_size": 3}}, {"name": "other"}, {"engine": {"state_dtype": "float32"}}):
        assert fingerprints(tmp_path, "arc", **harmless) == arc
        assert fingerprints(tmp_path, "sums", **harmless) == sums
    for changed in ({"model": {}}, {"engine": {"batch_invariant": False}}):
        assert fingerprints(tmp_path, "arc", **changed)[0] != arc[0]
        assert fingerprints(tmp_path, "sums", **changed)[1] != sums[1]
    assert fingerprints(tmp_path, "arc", tasks=[{"lm_eval": "arc", "limit": 6}])[0] != arc[0]
    assert fingerprints(tmp_path, "sums", tasks=[entry(set={"sampling.n": 3})])[1] != sums[1]
    other = fingerprints(tmp_path, "sums", tasks=[entry(set={"sampling.n": 2}, grade={"answer": "answer"})])
    assert other[1] == sums[1]  # the rows stay
    assert other[0] != sums[0]


def test_another_initial_state_is_another_task(tmp_path: Path) -> None:
    state = tmp_path / "state.pth"
    found = []
    for content in ("a", "b", "a"):
        state.write_text(content)
        model = {"init_state": str(state)}
        found.append([fingerprints(tmp_path, name, model=model)[0] for name in ("arc", "sums")])
    assert found[0] == found[2]
    assert not set(found[0]) & set(found[1])


def test_another_input_is_another_task(tmp_path: Path) -> None:
    before = fingerprints(tmp_path, "sums")
    suite = write_suite(tmp_path)
    with (tmp_path / "sums.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "9+9=", "answer": "18"}) + "\n")
    (found,) = (one for one in load_suite(suite).tasks if one.name == "sums")
    assert found.fingerprint("abc") != before[0]
