"""Reading and checking a suite file. Every wrong setting is named, with what it is and what was expected."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ..checksum import sha256_of
from ..errors import ConfigurationError
from ..job.config import EngineSection, JobConfig, ModelSection
from ..job.explain import explain
from ..job.fingerprint import HARMLESS, default_settings, flat_settings
from ..job.input.columns import Columns, bind_columns, expected_kinds
from ..job.input.reader import Input, open_input
from ..job.load import load_job
from ..job.messages import shown, unknown_key
from ..job.section import Section
from ..job.yaml_file import STDIN, file_label, read_yaml
from .config import HarnessSection, JobSection, Suite, SuiteConfig, task_sections
from .grade_section import GradeSection, problems_of
from .tasks import HarnessTask, JobTask, Task

OF_CHECKPOINT: Mapping[str, Any] = {
    "model.path": "demo",
    "model.sha256": None,
    "output.path": "out",
    "run.state_dir": None,
}
"""Settings of a job that a suite gives for each checkpoint → a value with which the job can be checked."""

Problems = list[tuple[str, str]]
"""(where, what) for each setting that is wrong."""
AnySection = TypeVar("AnySection", bound=Section)


def load_suite(path: str | os.PathLike[str], output: str | None = None) -> Suite:
    """Reads and checks a suite file, the job files that it names, and the columns of their inputs.

    Args:
        path: a YAML file, or "-" for standard input. Environment variables are put in as in a job file.
        output: replaces `output.path`.

    Raises:
        ConfigurationError: a file cannot be read, or settings are wrong; one line for each of these.
    """
    label, settings = file_label(path), read_yaml(path)
    if not isinstance(settings, dict):
        raise ConfigurationError(f"{label}: got {shown(settings)}, expected a mapping with tasks and output")
    settings = {key: value for key, value in settings.items() if value is not None and not str(key).startswith("x-")}
    if output is not None:
        settings["output"] = {"path": output}
    problems: Problems = []
    config = _validated(SuiteConfig, settings, "", problems)
    if config is None:
        raise _error(label, problems)
    model = _validated(ModelSection, {"path": "demo", **config.model}, "model.", problems)
    for key in {"path", "sha256"} & config.model.keys():
        problems.append((f"model.{key}", "got a setting of one checkpoint, expected none: --models names them"))
    engine = _validated(EngineSection, config.engine, "engine.", problems)
    if "://" in config.output.path:
        problems.append(("output.path", f"got {shown(config.output.path)}, expected a folder on a local disk"))
    if model is None or engine is None:
        raise _error(label, problems)
    folder = Path() if path == STDIN else Path(path).parent
    tasks: list[Task] = []
    for index, entry in enumerate(config.tasks):
        tasks += _tasks_of(entry, f"tasks[{index}]", folder, config, model, engine, problems)
    for name, count in Counter(task.name for task in tasks).items():
        if count > 1:
            problems.append(("tasks", f"{count} tasks have the name {name!r}, expected different ones: set name"))
    if problems:
        raise _error(label, problems)
    return Suite(
        config.name or Path(label).stem, label, model, engine, tuple(tasks), os.path.abspath(config.output.path)
    )


def _error(label: str, problems: Problems) -> ConfigurationError:
    return ConfigurationError("\n".join(f"{label}: {where}: {what}" if where else what for where, what in problems))


def _validated(
    section: type[AnySection], settings: Mapping[str, Any], prefix: str, problems: Problems
) -> AnySection | None:
    """The section that settings make; None where they are wrong, which is added to `problems`."""
    try:
        return section.model_validate(settings)
    except ValidationError as error:
        problems += ((prefix + where, what) for where, what in explain(error, settings, section, {}))
        return None


def _tasks_of(
    entry: Mapping[str, Any],
    where: str,
    folder: Path,
    config: SuiteConfig,
    model: ModelSection,
    engine: EngineSection,
    problems: Problems,
) -> Iterator[Task]:
    """Yields the tasks of an entry; what is wrong with it is added to `problems`.

    Args:
        where: the entry, for errors.
        folder: that of the suite file.
    """
    kinds = task_sections()
    found = [key for key in kinds if key in entry]
    if len(found) != 1:
        meant = unknown_key(str(next(iter(entry), "")), kinds) if not found else "got lm_eval and job"
        problems.append((where, f"{meant}, expected one of the keys lm_eval and job"))
        return
    section = _validated(kinds[found[0]], entry, f"{where}.", problems)
    if isinstance(section, HarnessSection):
        yield from _harness_tasks(section, where, folder, model, engine)
    elif isinstance(section, JobSection) and (task := _job_task(section, where, folder, config, problems)):
        yield task


def _harness_tasks(
    section: HarnessSection, where: str, folder: Path, model: ModelSection, engine: EngineSection
) -> Iterator[HarnessTask]:
    if section.include_path is not None:
        section = section.model_copy(update={"include_path": os.path.abspath(folder / section.include_path)})
    left_out = {"lm_eval", "name", "include_path", "include_defaults"}
    settings = {
        **section.model_dump(exclude=left_out, exclude_defaults=True),
        **_named("model", model.model_dump(exclude={"path"}, exclude_defaults=True)),
        **_named("engine", engine.model_dump(exclude_defaults=True)),
    }
    settings = {name: value for name, value in settings.items() if name not in HARMLESS} | _contents(model)
    for task in section.names:
        name = section.result_name(task).replace("/", "-")
        yield HarnessTask(name, {"task": task, **settings}, task, section, f"{where}.lm_eval")


def _job_task(section: JobSection, where: str, folder: Path, config: SuiteConfig, problems: Problems) -> JobTask | None:
    """The task of a job file; None where something is wrong, which is added to `problems`."""
    path = str(folder / section.job)
    if given := sorted(OF_CHECKPOINT.keys() & section.set.keys()):
        problems.append((f"{where}.set.{given[0]}", "the suite gives this setting for each checkpoint; leave it out"))
        return None
    overrides = {
        **_named("model", config.model),
        **_named("engine", config.engine),
        **section.set,
    }
    try:
        job = load_job(path, {**overrides, **OF_CHECKPOINT})
        source, columns = _input_of(job, path)
    except ConfigurationError as error:
        problems += ((where, line.replace("overrides: ", "set.")) for line in str(error).splitlines())
        return None
    grade = None
    if section.grade is not None:
        grade = _validated(GradeSection, section.grade, f"{where}.grade.", problems)
    elif job.task == "generate":
        problems.append((f"{where}.grade", "missing, expected how completions are graded"))
    if grade is not None:
        problems += ((f"{where}.{setting}", what) for setting, what in problems_of(grade, job, columns.passed))
    settings = {"job": os.path.basename(path), **_result_settings(job, source, columns)}
    return JobTask(section.name, settings, path, overrides, job.task == "score", grade)


def _named(section: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a section by dotted name."""
    return {f"{section}.{name}": value for name, value in settings.items()}


def _input_of(job: JobConfig, path: str) -> tuple[Input, Columns]:
    """Opens the input of a job, and finds its columns.

    Args:
        path: of the job file, for errors.

    Raises:
        ConfigurationError: the input cannot be read, or a column is missing.
    """
    try:
        source = open_input(job.input.path, job.input.format, expected_kinds(job))
        return source, bind_columns(job, source)
    except OSError as error:
        raise ConfigurationError(f"{path}: input.path: {error}") from error
    except ConfigurationError as error:
        raise ConfigurationError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error


def _result_settings(job: JobConfig, source: Input, columns: Columns) -> dict[str, Any]:
    """The settings of a job on which its results depend, but for defaults, and what describes its input."""
    defaults, left_out = default_settings(), HARMLESS | set(OF_CHECKPOINT)
    settings = {
        name: value
        for name, value in flat_settings(job).items()
        if name not in left_out and (name not in defaults or value != defaults[name])
    }
    files = [(os.path.basename(entry["file"]), entry["rows"], entry["bytes"]) for entry in source.manifest()]
    return {**settings, "input.path": files, "input.template": columns.template, **_contents(job.model)}


def _contents(model: ModelSection) -> dict[str, str]:
    """The checksum of the initial state, where it is a file of this machine."""
    if model.init_state is None or not os.path.isfile(model.init_state):
        return {}
    with open(model.init_state, "rb") as file:
        return {"model.init_state": sha256_of(file)}
