"""Preparation of a job: everything that can be checked, and refused, before a model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import pyarrow as pa

from .. import __version__
from ..errors import ConfigurationError, MissingExtraError, ResumeError, RowError, RwkvBatchError
from ..settings import EngineSettings, ModelSettings
from .chat import JobChat, is_older_job, open_job_chat
from .config import EngineSection, JobConfig, ModelSection
from .fingerprint import HALF_STATES, ROUNDING, fingerprint, other_rules, result_settings
from .folders import Folders, check_folders, check_reachable
from .input.columns import Columns, bind_columns, expected_kinds
from .input.reader import Input, open_input
from .input.rows import RowParser
from .input.score_columns import without_late_answers
from .messages import shortened
from .output.codec import Codec
from .output.commit import JobFiles
from .output.extra import TYPES as EXTRA_TYPES
from .output.extra import InputWithExtra
from .output.part_check import PartCheck
from .output.parts import ROW_GROUP_ROWS, OutputFormat, RowSource
from .output.published import Retry
from .output.results import output_names, result_schema, without_later
from .output.storage import Storage
from .plan import UnitPlan, rows_per_part
from .state import read_job

logger = logging.getLogger(__name__)

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
        chat: how conversations become prompts; None where no prompt is one.
        other_rules: what forbids to serve further rows of a job that an earlier version has begun, in lines.
        retry: the error rows of published parts that the run serves again; None where it serves rows without results.
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
    chat: JobChat | None = None
    other_rules: tuple[str, ...] = ()
    retry: Retry | None = None

    def started_as(self, document: dict[str, Any]) -> Prepared:
        """Returns the same job with the fingerprint that its job.json records.

        Args:
            document: the content of job.json.
        """
        footer = {**self.form.footer, "fingerprint": document["fingerprint"]}
        rules = tuple(other_rules(document["settings"], self.document["settings"]))
        return replace(self, document=document, form=replace(self.form, footer=footer), other_rules=rules)

    def files(self, storage: Storage) -> JobFiles:
        """Returns the parts and segments of this job."""
        return JobFiles(storage, self.folders.output, self.folders.state, self.plan, self.form, self.retry)

    def part_source(self) -> RowSource:
        """Returns the input with the columns of output.extra, as parts repeat it."""
        files = [entry["file"] for entry in self.document["input"]]  # as when the job started: files may move
        names: dict[str, str] = {own: self.form.names.get(own, own) for own in self.job.output.extra}
        return InputWithExtra(self.source, self.parser, self.columns.read, files, names) if names else self.source

    def part_check(self) -> PartCheck:
        """Returns what makes test parts of this job."""
        return PartCheck(self.form, self.part_source(), self.plan)


@contextmanager
def named_as_in_jobs() -> Iterator[None]:
    """Inside, an error about an argument of `LLM` names the job's setting instead."""
    try:
        yield
    except RwkvBatchError as error:
        error.setting = SETTINGS.get(error.setting or "", error.setting)
        raise


def model_settings(section: ModelSection) -> ModelSettings:
    """The settings of a job's model."""
    return ModelSettings(model=section.path, **section.model_dump(exclude={"path", "sha256"}))


def engine_settings(section: EngineSection, seed: int | None = None) -> EngineSettings:
    """The settings of a job's engine; a setting that is "auto" is None there.

    Args:
        seed: that of the section `sampling`.
    """
    settings = section.model_dump()
    may_be_auto = ("max_batch_size", "max_batch_tokens")
    chosen = {name: None for name in may_be_auto if settings[name] == "auto"}
    return EngineSettings(**{**settings, **chosen}, seed=seed or 0)


@contextmanager
def _readable() -> Iterator[None]:
    """Inside, nothing is read but what settings name: an error of the operating system is an error of a setting."""
    try:
        yield
    except OSError as error:
        path = f"{shortened(str(error.filename))}: " if error.filename else ""
        raise ConfigurationError(f"{path}{error.strerror or error}; expected a file or folder to work with") from error


@_readable()
def prepare(job: JobConfig, inspect_model: Callable[..., Any], source: Input | None = None) -> Prepared:
    """Checks the job against its input, its folders and its model file. Writes nothing.

    Args:
        inspect_model: the function of that name, or a test's.
        source: the input, where another process has opened it.

    Raises:
        ConfigurationError, CheckpointError, CapacityError, MissingExtraError: something is wrong; nothing has been
            written.
    """
    folders = Folders.of(job)
    storage = folders.open_storage()
    check_reachable(folders, storage)
    document = _started_job(storage, folders)
    started = None if document is None else document["settings"]
    is_older, is_earlier = is_older_job(started), _is_of_an_earlier_version(started)
    if source is None:
        logger.info("%s: reading the input's columns and counting its rows", job.input.path)
        source = open_input(job.input.path, job.input.format, expected_kinds(job, is_older))
    if is_earlier:
        job = without_late_answers(job, source.schema)
    columns = bind_columns(job, source)
    results = result_schema(job, columns)
    results = without_later(results) if is_earlier else results
    names = output_names(job, columns, results)
    extra = [pa.field(names[name], EXTRA_TYPES[name]) for name in names if name in EXTRA_TYPES]
    passed = pa.schema([*(source.schema.field(name) for name in columns.passed), *extra])
    check_folders(job, folders, source.files)
    logger.info("%s: reading the model's sizes and the checksum of its files", job.model.path)
    _check_pin(job)
    with named_as_in_jobs():
        model = inspect_model(model_settings(job.model), engine_settings(job.engine, job.sampling.seed))
    if job.task == "generate":
        _check_sampling(job, columns, model)
    chat = open_job_chat(job, "messages" in columns.roles, model.file.checkpoint.path, is_older)
    parser = RowParser(job, replace(columns, answer=None) if is_earlier else columns, chat)
    plan = _plan(job, source.num_rows, document)
    form = OutputFormat(
        results,
        passed,
        {},
        {own: name for own, name in names.items() if own != name},
        Codec.of(job.output.compression),
        ROW_GROUP_ROWS if job.output.row_group_rows == "auto" else job.output.row_group_rows,
    )
    document = _job_document(job, columns, form, source, plan, folders, model, chat)
    footer = {"version": __version__, "fingerprint": document["fingerprint"], "seed": str(job.sampling.seed)}
    return Prepared(job, source, columns, parser, plan, replace(form, footer=footer), folders, document, model, chat)


def _started_job(storage: Storage, folders: Folders) -> Mapping[str, Any] | None:
    """The content of job.json. None where there is none, or none that can be read: later checks say so."""
    try:
        return read_job(storage, folders.state)
    except (OSError, ValueError, ResumeError):
        return None


def _plan(job: JobConfig, num_rows: int, started: Mapping[str, Any] | None) -> UnitPlan:
    """The units of a job. Where the job file does not say how many rows a part has, a job goes on as it was started."""
    num_rows = min(num_rows, job.input.limit or num_rows)
    if job.output.rows_per_part != "auto":
        return UnitPlan(num_rows, job.output.rows_per_part)
    recorded = None if started is None else started["plan"].get("output.rows_per_part")
    if isinstance(recorded, int) and recorded > 0:
        return UnitPlan(num_rows, recorded)
    return UnitPlan(num_rows, rows_per_part(num_rows))


def _is_of_an_earlier_version(started: Mapping[str, Any] | None) -> bool:
    """Whether the job was started before score jobs had answers in their rows. Its rows and columns stay as they were.

    Args:
        started: as for `is_older_job`.
    """
    return started is not None and started.get("task") == "score" and "score.answer" not in started


def _job_document(
    job: JobConfig,
    columns: Columns,
    form: OutputFormat,
    source: Input,
    plan: UnitPlan,
    folders: Folders,
    model: Any,
    chat: JobChat | None,
) -> dict[str, Any]:
    """The content of job.json: version, settings with their fingerprint, plan, input manifest and backends."""
    identity = {
        "fingerprint": model.fingerprint,
        "tokenizer": None if model.tokenizer is None else model.tokenizer.fingerprint,
        "dtype": model.describe().get("dtype", job.model.dtype),
    }
    settings = result_settings(
        job, columns, form.passed, form.named_results(), identity, None if chat is None else chat.recorded()
    )
    return {
        "version": __version__,
        "fingerprint": fingerprint(settings),
        "settings": settings,
        "plan": {
            "output.path": folders.output_from_state() if job.run.state_dir else None,
            "rows": plan.num_rows,
            "output.rows_per_part": plan.rows_per_part,
            "units": plan.num_units,
            "input.limit": job.input.limit,
        },
        "input": source.manifest(),
        "backends": _backends(model.describe()["backends"], job.engine.state_dtype),
        "columns": form.names,
    }


def _backends(choices: Sequence[Mapping[str, Any]], state_dtype: str) -> dict[str, str]:
    """Returns who serves each op: the op, with its device where there are several → the backend.

    Where states are float16, an entry more says how they are rounded.
    """
    found = {f"{one['op']} on {one['on']}" if "on" in one else one["op"]: one["backend"] for one in choices}
    return found | ({HALF_STATES: ROUNDING} if state_dtype == "float16" else {})


def _check_sampling(job: JobConfig, columns: Columns, model: Any) -> None:
    """Checks the job's sampling section as the engine will, and that the extras for the rows' own values are there."""
    from ..requests import RequestBuilder

    try:
        RequestBuilder(model.tokenizer, model.file.sizes["V"], 0, model.constraints).check(job.sampling)
    except RowError as error:
        raise ConfigurationError(f"sampling: {error}") from error
    if columns.have_constraints:
        try:
            import llguidance  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("structured output", "llguidance", "structured") from error


def _check_pin(job: JobConfig) -> None:
    """Compares `model.sha256` with the model's weight files, before anything else reads them."""
    expected, path = job.model.sha256, job.model.path
    if expected is None:
        return
    from ..models.files.checkpoint import sha256_of_model  # imports torch

    if path == "demo":
        raise ConfigurationError("model.sha256: pins weight files, and 'demo' is a part of rwkv_batch; leave it null")
    with named_as_in_jobs():
        found = sha256_of_model(path)
    if found != expected.lower():
        raise ConfigurationError(f"model.sha256: {path} has {found}, expected {expected}: this is another model")
