"""Preparation of a job: everything that can be checked, and refused, before a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import pyarrow as pa

from .. import __version__
from ..errors import ConfigurationError, MissingExtraError, RowError, RwkvBatchError
from ..sampling_params import CONSTRAINTS
from ..settings import EngineSettings, ModelSettings
from .config import EngineSection, JobConfig, ModelSection
from .fingerprint import fingerprint, result_settings
from .input.columns import Columns, bind_columns, expected_kinds
from .input.reader import Input, open_input
from .input.rows import RowParser
from .input.version import sha256_of
from .output.parts import OutputFormat
from .output.rehearsal import Rehearsal
from .output.results import passed_schema, result_schema
from .plan import UnitPlan
from .state import Folders, check_folders

SETTINGS = {
    name: f"{section}.{name}"
    for section, of_job, of_library in (
        ("model", ModelSection, ModelSettings),
        ("engine", EngineSection, EngineSettings),
    )
    for name in (field.name for field in fields(of_library))
    if name in of_job.model_fields
}
"""Argument of `LLM` → the job's setting that it comes from."""


@dataclass(frozen=True)
class Prepared:
    """A job that has passed every check but the model's.

    Args:
        source: the input.
        columns: which input column has which role.
        parser: makes rows to serve of the input.
        plan: the job's units.
        form: schema and footer of the output files.
        folders: the output folder and the state folder.
        document: the content of job.json: settings, plan, input manifest, fingerprint.
        model: `ModelSummary` of the model that will serve the job.
    """

    job: JobConfig
    source: Input
    columns: Columns
    parser: RowParser
    plan: UnitPlan
    form: OutputFormat
    folders: Folders
    document: dict[str, Any]
    model: Any

    def started_as(self, document: dict[str, Any]) -> Prepared:
        """Returns the same job with the fingerprint that its job.json records.

        Args:
            document: the content of job.json.
        """
        footer = {**self.form.footer, "fingerprint": document["fingerprint"]}
        return replace(self, document=document, form=replace(self.form, footer=footer))

    def rehearsal(self) -> Rehearsal:
        """Returns what makes test parts of this job."""
        return Rehearsal(self.form, self.source, self.plan)


@contextmanager
def named_as_in_jobs() -> Iterator[None]:
    """Inside, an error about an argument of `LLM` names the job's setting instead."""
    try:
        yield
    except RwkvBatchError as error:
        error.setting = SETTINGS.get(error.setting or "", error.setting)
        raise


def model_settings(job: JobConfig) -> ModelSettings:
    """The settings of the job's model."""
    return ModelSettings(model=job.model.path, **job.model.model_dump(exclude={"path", "sha256"}))


def engine_settings(job: JobConfig) -> EngineSettings:
    """The settings of the job's engine; a size that is "auto" is None there."""
    settings = job.engine.model_dump()
    sizes = {name: None for name in ("max_batch_size", "max_batch_tokens") if settings[name] == "auto"}
    return EngineSettings(**{**settings, **sizes}, seed=job.sampling.seed or 0)


def prepare(job: JobConfig, inspect_model: Callable[..., Any]) -> Prepared:
    """Checks the job against its input, its folders and its model file. Writes nothing.

    Args:
        inspect_model: the function of that name, or a test's.

    Raises:
        ConfigurationError, CheckpointError, CapacityError, MissingExtraError: something is wrong; nothing has been
            written.
    """
    source = open_input(job.input.path, job.input.format, expected_kinds(job))
    columns = bind_columns(job, source)
    results = result_schema(job, columns)
    passed = passed_schema(source.schema, columns, results)
    folders = Folders.of(job)
    check_folders(job, folders, source.files)
    _check_pin(job)
    with named_as_in_jobs():
        model = inspect_model(model_settings(job), engine_settings(job))
    if job.task == "generate":
        _check_sampling(job, columns, source.schema, model)
    parser = RowParser(job, columns)
    plan = UnitPlan(min(source.num_rows, job.input.limit or source.num_rows), job.output.rows_per_part)
    form = OutputFormat(results, passed, {})
    document = _job_document(job, columns, form, source, plan, folders, model)
    footer = {"version": __version__, "fingerprint": document["fingerprint"], "seed": str(job.sampling.seed)}
    return Prepared(job, source, columns, parser, plan, replace(form, footer=footer), folders, document, model)


def _job_document(
    job: JobConfig,
    columns: Columns,
    form: OutputFormat,
    source: Input,
    plan: UnitPlan,
    folders: Folders,
    model: Any,
) -> dict[str, Any]:
    """The content of job.json: version, settings with their fingerprint, plan, input manifest and backends."""
    identity = {
        "fingerprint": model.fingerprint,
        "tokenizer": None if model.tokenizer is None else model.tokenizer.fingerprint,
        "dtype": model.describe().get("dtype", job.model.dtype),
    }
    settings = result_settings(job, columns, form.passed, form.results, identity)
    return {
        "version": __version__,
        "fingerprint": fingerprint(settings),
        "settings": settings,
        "plan": {
            "output.path": os.path.relpath(folders.output, folders.state) if job.run.state_dir else None,
            "rows": plan.num_rows,
            "output.rows_per_part": plan.rows_per_part,
            "units": plan.num_units,
            "input.limit": job.input.limit,
        },
        "input": source.manifest(),
        "backends": _backends(model.describe()["backends"]),
    }


def _backends(choices: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns who serves each op: the op, with its device where there are several → the backend."""
    return {f"{one['op']} on {one['on']}" if "on" in one else one["op"]: one["backend"] for one in choices}


def _check_sampling(job: JobConfig, columns: Columns, schema: pa.Schema, model: Any) -> None:
    """Checks the job's sampling section as the engine will, and that the extras for the rows' own values are there."""
    from ..requests import RequestBuilder
    from ..text.constraint import ConstraintCompiler

    vocab_size, tokenizer = model.file.sizes["V"], model.tokenizer
    constraints = None if tokenizer is None else ConstraintCompiler(tokenizer.token_bytes, vocab_size)
    try:
        RequestBuilder(tokenizer, vocab_size, 0, constraints).check(job.sampling)
    except RowError as error:
        raise ConfigurationError(f"sampling: {error}") from error
    struct = schema.field(columns.sampling_struct).type if columns.sampling_struct else pa.struct([])
    fields = {*columns.sampling, *(struct.field(index).name for index in range(struct.num_fields))}
    if not fields.isdisjoint(CONSTRAINTS):
        try:
            import xgrammar  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("structured output", "xgrammar", "structured") from error


def _check_pin(job: JobConfig) -> None:
    """Compares `model.sha256` with the model file, before anything else reads the file."""
    expected, path = job.model.sha256, job.model.path
    if expected is None:
        return
    if not os.path.isfile(path):
        raise ConfigurationError(f"model.sha256: pins a single local file, and {path!r} is none")
    with open(path, "rb") as file:
        found = sha256_of(file)
    if found != expected.lower():
        raise ConfigurationError(f"model.sha256: {path} has {found}, expected {expected}: this is another file")
