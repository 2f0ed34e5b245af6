"""Binding: which input column has which role in a job, settled from the schema alone, before any row is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field

import pyarrow as pa
import pyarrow.types as pt

from ...errors import ConfigurationError
from ...sampling_params import CONSTRAINTS, SAMPLING_FIELDS
from ...text.templates import template_source
from ..config import JobConfig
from ..messages import did_you_mean, listed
from .arrow_types import Check, is_ids, is_lists_of_ids
from .json_kinds import PLAIN_MESSAGES, Expected, Struct
from .reader import Input
from .roles import CHAT_KINDS, CHECKS, PROMPT_KINDS, SAMPLING_CHECKS, SAMPLING_KINDS, SCORE_KINDS
from .score_columns import (
    CHOICE_NAMES,
    Scored,
    answer_problem,
    are_ids,
    check_score,
    kind_of_rows,
    score_roles,
    with_answers,
)

ROLES = (*CHECKS, "id", "sampling", *CHAT_KINDS, *SAMPLING_FIELDS)
"""All names that `input.columns` takes."""


@dataclass(frozen=True)
class Columns:
    """The roles of the input's columns.

    Args:
        roles: prompt, messages, prompt_token_ids, context, continuation, choices or text → its column.
        sampling: sampling field → the column that overrides it.
        sampling_struct: the column whose fields override sampling fields, if there is one.
        answer: the column with the right choice, if there is one.
        template: source of the Jinja template that makes the prompt, if there is one.
        passed: columns that the output repeats.
        read: columns that making requests needs.
        json_text: those of them that the template gets as the values that their JSON text stands for.
        id: the column that names rows, if there is one.
        scored: what a score job scores; None for another task.
        chat: tools or chat_template_kwargs → its column, beside one of messages.
        have_constraints: a column, or a field of `sampling_struct`, may give a row a constraint.
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
    scored: Scored | None = None
    chat: Mapping[str, str] = dataclass_field(default_factory=dict)
    have_constraints: bool = False

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
        kinds = {role: kind for role, kind in SCORE_KINDS.items() if _is_read(job, role)}
    else:
        kinds = {**SAMPLING_KINDS, "sampling": Struct(SAMPLING_KINDS)}
        if job.input.template is None:
            kinds |= {role: PROMPT_KINDS[role] for role in _named_prompts(job) or PROMPT_KINDS}
            if "messages" in kinds:
                kinds |= {"messages": PLAIN_MESSAGES} if is_older else CHAT_KINDS
    named = {role: job.input.columns.get(role, role) for role in kinds}
    return {name: kinds[role] for role, name in named.items() if name is not None}


def _is_read(job: JobConfig, role: str) -> bool:
    """Whether a column of a score job that is there may have this role."""
    if role == "context":
        return job.input.template is None
    return role != "text" or job.input.columns.get("text") is not None


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
        self._source = source
        self._schema = source.schema
        self._contradictions = source.contradictions
        self._json_text = source.json_text
        self._several_prompts = source.has_prompts_of_several_kinds
        self._problems: list[str] = []
        self._given = self._given_columns()
        self._template = _template_source(job.input.template, "input.template")

    def bind(self) -> Columns:
        """Raises ConfigurationError with all problems."""
        is_score = self._job.task == "score"
        roles = self._score_roles() if is_score else self._prompt_roles()
        for role, name in roles.items():
            self._check_type(name, CHECKS[role], f"input.columns.{role}")
        scored = self._scored(roles) if is_score else None
        answer = self._answer(roles) if scored is not None and scored.kind == "choices" else None
        sampling = {} if is_score else self._sampling_columns()
        struct = None if is_score else self._sampling_struct(sampling)
        chat = {role: self._given[role] for role in CHAT_KINDS if role in self._given and "messages" in roles}
        self._check_tokenizer(roles)
        passed = self._passed_columns()
        in_template = self._template_columns(scored)
        needed = {*roles.values(), *sampling.values(), *chat.values(), *in_template}
        needed |= {name for name in (struct, answer) if name is not None}
        used = needed | {*passed}
        self._problems += [f"input.path: {text}" for name, text in self._contradictions.items() if name in used]
        if self._problems:
            raise ConfigurationError("\n".join(self._problems))
        if scored is not None and answer is not None:
            scored = with_answers(scored, self._job, self._source, answer, roles.get("choices"))
        read = [name for name in self._schema.names if name in needed]
        json_text = tuple(name for name in [*in_template, answer] if name in self._json_text)
        id_column = self._given.get("id")
        return Columns(
            roles,
            sampling,
            struct,
            answer,
            self._template,
            tuple(passed),
            tuple(read),
            json_text,
            id_column,
            scored,
            chat,
            not self._sampling_fields(sampling, struct).isdisjoint(CONSTRAINTS),
        )

    def _template_columns(self, scored: Scored | None) -> list[str]:
        """The columns that templates read, in the input's order; none without a template."""
        names = self._schema.names
        found: list[str] = []
        if self._template is not None:
            found += self._columns_of(self._template, "input.template", names)
        if scored is not None and scored.template is not None:
            extra = CHOICE_NAMES if scored.kind == "choices" else ()
            found += self._columns_of(scored.template, scored.template_setting, [*names, *extra])
        return [name for name in names if name in found]

    def _columns_of(self, source: str, setting: str, names: Sequence[str]) -> list[str]:
        """The names that a template reads, of those that it may read."""
        from .template import Template

        try:
            return Template(source, setting).columns(names)
        except ConfigurationError as error:
            section = setting.rpartition(".")[0]
            text = str(error)
            self._problems.append(text if section == "input" or text.startswith(setting) else f"{section}.{text}")
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
        """The context and what is scored after it."""
        roles, problems = score_roles(self._job, self._given, self._schema.names)
        self._problems += problems
        if (name := roles.get("text")) in self._json_text:
            self._problems.append(
                f"input.columns.text: column {name!r} holds values of several kinds; with columns: {{text: {name}}} a "
                "value that is no text makes an error row"
            )
        return roles

    def _scored(self, roles: dict[str, str]) -> Scored:
        """What is scored in each row."""
        score = self._job.score
        kind = kind_of_rows(self._job, roles)
        setting = "choice_template" if kind == "choices" else "continuation_template"
        template = _template_source(getattr(score, setting), f"score.{setting}")
        self._problems += check_score(self._job, kind, self._schema.names)
        has_texts = template is not None or not are_ids(self._schema, roles)
        return Scored(kind, tuple(score.choices) if score.choices else None, template, None, has_texts)

    def _answer(self, roles: dict[str, str]) -> str | None:
        """The column with the right choices. A column that is only by chance called answer may hold nulls only."""
        name = self._given.get("answer")
        if name is None or ("answer" not in self._job.input.columns and pt.is_null(self._schema.field(name).type)):
            return None
        if problem := answer_problem(self._job, self._schema.field(name), are_ids(self._schema, roles)):
            self._problems.append(problem)
        return name

    def _sampling_columns(self) -> dict[str, str]:
        sampling = {field: self._given[field] for field in SAMPLING_FIELDS if field in self._given}
        for field, name in sampling.items():
            self._check_type(name, SAMPLING_CHECKS[field], f"input.columns.{field}")
        return sampling

    def _sampling_fields(self, sampling: Mapping[str, str], struct: str | None) -> set[str]:
        """The sampling fields that columns, or fields of a struct, override."""
        kind = pa.struct([]) if struct is None else self._schema.field(struct).type
        return {*sampling, *((field.name for field in kind) if pt.is_struct(kind) else ())}

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
        score = self._job.score
        made = [self._template, score.choices, score.choice_template, score.continuation_template]
        has_text = made != [None] * 4 or not all(is_ids(kind) or is_lists_of_ids(kind) for kind in kinds)
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
        kept = {*wanted, self._given.get("id"), self._job.score.group_by}
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


def _template_source(template: str | None, setting: str) -> str | None:
    """The source of a template that a setting gives; None where it gives none."""
    return None if template is None else template_source(template, setting)[0]
