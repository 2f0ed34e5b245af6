"""Binding: which input column has which role in a job, settled from the schema alone, before any row is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field

import pyarrow as pa
import pyarrow.types as pt

from ...errors import ConfigurationError, looked_up
from ...sampling_params import SAMPLING_FIELDS
from ...user_files import read_text, reason_of
from ..config import JobConfig
from ..messages import did_you_mean, listed
from .arrow_types import Check, is_ids, is_lists_of_ids
from .json_kinds import PLAIN_MESSAGES, Expected, Struct
from .reader import Input
from .roles import CHAT_KINDS, CHECKS, PROMPT_KINDS, SAMPLING_CHECKS, SAMPLING_KINDS, SCORE_KINDS

ROLES = (*CHECKS, "id", "sampling", *CHAT_KINDS, *SAMPLING_FIELDS)
"""All names that `input.columns` takes."""


@dataclass(frozen=True)
class Columns:
    """The roles of the input's columns.

    Args:
        roles: prompt, messages, prompt_token_ids, context, continuation or choices → its column.
        sampling: sampling field → the column that overrides it.
        sampling_struct: the column whose fields override sampling fields, if there is one.
        answer: the column with the index of the right choice, for the report's accuracy, if there is one.
        template: source of the Jinja template that makes the prompt, if there is one.
        passed: columns that the output repeats.
        read: columns that making requests needs.
        json_text: those of them that the template gets as the values that their JSON text stands for.
        id: the column that names rows, if there is one.
        chat: tools or chat_template_kwargs → its column, beside one of messages.
    """

    roles: dict[str, str]
    sampling: dict[str, str]
    sampling_struct: str | None
    answer: str | None
    template: str | None
    passed: tuple[str, ...]
    read: tuple[str, ...]
    json_text: tuple[str, ...] = ()
    id: str | None = None
    chat: Mapping[str, str] = dataclass_field(default_factory=dict)

    @property
    def overriding(self) -> list[str]:
        """The columns whose values override the job's sampling settings."""
        return [*self.sampling.values(), *([self.sampling_struct] if self.sampling_struct else [])]


def expected_kinds(job: JobConfig, is_older: bool = False) -> dict[str, Expected]:
    """For formats without a schema: column → the kind of its values. A value of another kind makes a bad row.

    Args:
        is_older: the job was begun by a version that read nothing of messages but role and content.
    """
    kinds: dict[str, Expected]
    if job.task == "score":
        kinds = dict(SCORE_KINDS)
    else:
        kinds = {**SAMPLING_KINDS, "sampling": Struct(SAMPLING_KINDS)}
        if job.input.template is None:
            kinds |= {role: PROMPT_KINDS[role] for role in _named_prompts(job) or PROMPT_KINDS}
            if "messages" in kinds:
                kinds |= {"messages": PLAIN_MESSAGES} if is_older else CHAT_KINDS
    named = {role: job.input.columns.get(role, role) for role in kinds}
    return {name: kinds[role] for role, name in named.items() if name is not None}


def bind_columns(job: JobConfig, source: Input) -> Columns:
    """Finds the columns that the job needs.

    Raises:
        ConfigurationError: a column is missing, ambiguous or of the wrong type; one line for each problem.
    """
    return _Binder(job, source).bind()


class _Binder:
    """Finds the columns of one job, and collects everything that is wrong with them."""

    def __init__(self, job: JobConfig, source: Input) -> None:
        self._job = job
        self._schema = source.schema
        self._contradictions = source.contradictions
        self._json_text = source.json_text
        self._several_prompts = source.has_prompts_of_several_kinds
        self._problems: list[str] = []
        self._given = self._given_columns()
        self._template = _template_source(job.input.template)

    def bind(self) -> Columns:
        """Raises ConfigurationError with all problems."""
        is_score = self._job.task == "score"
        roles = self._score_roles() if is_score else self._prompt_roles()
        answer = self._answer() if "choices" in roles else None
        for role, name in roles.items():
            self._check_type(name, CHECKS[role], f"input.columns.{role}")
        sampling = {} if is_score else self._sampling_columns()
        struct = None if is_score else self._sampling_struct(sampling)
        chat = {role: self._given[role] for role in CHAT_KINDS if role in self._given and "messages" in roles}
        self._check_tokenizer(roles)
        passed = self._passed_columns()
        in_template = self._template_columns()
        needed = {*roles.values(), *sampling.values(), *chat.values(), *([struct] if struct else []), *in_template}
        used = needed | {*passed}
        self._problems += [f"input.path: {text}" for name, text in self._contradictions.items() if name in used]
        if self._problems:
            raise ConfigurationError("\n".join(self._problems))
        read = [name for name in self._schema.names if name in needed]
        json_text = tuple(name for name in in_template if name in self._json_text)
        id_column = self._given.get("id")
        return Columns(
            roles, sampling, struct, answer, self._template, tuple(passed), tuple(read), json_text, id_column, chat
        )

    def _template_columns(self) -> list[str]:
        """The columns that the template reads; none without a template."""
        if self._template is None:
            return []
        from .template import Template

        try:
            return Template(self._template).columns(self._schema.names)
        except ConfigurationError as error:
            self._problems.append(str(error))
            return []

    def _given_columns(self) -> dict[str, str]:
        """Role → column for every role that has one: named in `input.columns`, else a column of the role's own name."""
        names = self._schema.names
        given = {role: role for role in ROLES if role in names}
        for role, name in self._job.input.columns.items():
            if role not in ROLES:
                self._problems.append(f"input.columns.{role}: unknown role{did_you_mean(role, ROLES)}")
            elif name is None:
                given.pop(role, None)
            elif name not in names:
                hint = did_you_mean(name, names) or f"; the input has {listed(names)}"
                self._problems.append(f"input.columns.{role}: the input has no column {name!r}{hint}")
            else:
                given[role] = name
        return given

    def _prompt_roles(self) -> dict[str, str]:
        """The column that prompts come from; none where a template makes them, several where rows differ in it."""
        if self._template is not None:
            return {}
        present = _named_prompts(self._job) or [role for role in PROMPT_KINDS if role in self._given]
        if not present or (len(present) > 1 and not self._several_prompts):
            found = f"found {' and '.join(present)}" if present else "found none of them"
            self._problems.append(
                f"input.columns: {found}, expected exactly one of the columns {listed(PROMPT_KINDS)} "
                f"(name it, for example columns: {{prompt: question}}); the input has {listed(self._schema.names)}"
            )
        return {role: self._given[role] for role in present if role in self._given}

    def _score_roles(self) -> dict[str, str]:
        """The context and what is scored after it; with `context: null` continuations are whole documents."""
        columns, given = self._job.input.columns, self._given
        endings = [role for role in ("continuation", "choices") if role in given]
        wants_none = "context" in columns and columns["context"] is None
        if len(endings) != 1 or ("context" not in given and not (wants_none and endings == ["continuation"])):
            self._problems.append(
                "input.columns: task score needs the column context, and either continuation or choices "
                "(context: null scores continuations as whole documents); "
                f"the input has {listed(self._schema.names)}"
            )
            return {}
        return {role: given[role] for role in ("context", *endings) if role in given}

    def _answer(self) -> str | None:
        """The column with the right choices. A column that is only by chance called answer holds no integers."""
        name = self._given.get("answer")
        if name is None or CHECKS["answer"].accepts(self._schema.field(name).type):
            return name
        if "answer" in self._job.input.columns:
            self._check_type(name, CHECKS["answer"], "input.columns.answer")
        return None

    def _sampling_columns(self) -> dict[str, str]:
        sampling = {field: self._given[field] for field in SAMPLING_FIELDS if field in self._given}
        for field, name in sampling.items():
            self._check_type(name, SAMPLING_CHECKS[field], f"input.columns.{field}")
        return sampling

    def _sampling_struct(self, sampling: dict[str, str]) -> str | None:
        """The column `sampling`, whose fields must be sampling fields that are not columns too."""
        struct = self._given.get("sampling")
        kind = None if struct is None else self._schema.field(struct).type
        if kind is None or pt.is_null(kind):
            return struct
        where = "input.columns.sampling"
        if not pt.is_struct(kind):
            self._problems.append(f"{where}: column {struct!r} is {kind}, expected a struct of sampling fields")
            return None
        for field in kind:
            if field.name not in SAMPLING_FIELDS:
                hint = did_you_mean(field.name, SAMPLING_FIELDS)
                self._problems.append(f"{where}: {struct}.{field.name} is no sampling field{hint}")
            elif field.name in sampling:
                self._problems.append(f"{where}: {field.name} is a column and in {struct!r} too, expected one of them")
            else:
                self._check_field(field, SAMPLING_CHECKS[field.name], f"{where}: {struct}")
        return struct

    def _check_tokenizer(self, roles: dict[str, str]) -> None:
        """Prompts that are text need a tokenizer."""
        kinds = [self._schema.field(name).type for name in roles.values()]
        has_text = self._template is not None or not all(is_ids(kind) or is_lists_of_ids(kind) for kind in kinds)
        if self._job.model.tokenizer is None and has_text:
            self._problems.append(
                "model.tokenizer: got null, which serves token ids only; expected a tokenizer, because prompts are text"
            )

    def _passed_columns(self) -> list[str]:
        wanted, names = self._job.output.input_columns, self._schema.names
        if wanted == "all":
            return list(names)
        wanted = [] if isinstance(wanted, str) else wanted
        for name in wanted:
            if name not in names:
                self._problems.append(
                    f"output.input_columns: the input has no column {name!r}{did_you_mean(name, names)}"
                )
        kept = {*wanted, self._given.get("id")}
        return [name for name in names if name in kept]

    def _check_type(self, name: str, check: Check, where: str) -> None:
        if name not in self._contradictions:
            self._check_field(self._schema.field(name), check, where)

    def _check_field(self, field: pa.Field, check: Check, where: str) -> None:
        if not check.accepts(field.type):
            self._problems.append(
                f"{where}: column {field.name!r} is {field.type}, expected {check.expected} "
                "(or set it to null in input.columns)"
            )


def _named_prompts(job: JobConfig) -> list[str]:
    """The roles of prompts to which `input.columns` gives a column."""
    return [role for role in PROMPT_KINDS if job.input.columns.get(role) is not None]


def _template_source(template: str | None) -> str | None:
    """`input.template` itself where it looks like Jinja, else what the file of that name holds."""
    if template is None or "{{" in template or "{%" in template:
        return template
    try:
        return read_text(os.path.expanduser(template))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"input.template: got {template!r}, expected a Jinja template or an existing file{looked_up(template)}: "
            f"{reason_of(error)}"
        ) from error
