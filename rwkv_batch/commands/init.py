"""The command `init`: a commented job file for a data file, made of the names and types of its columns."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ..errors import ConfigurationError
from ..job.input.arrow_types import is_messages, is_texts, is_utf8
from ..job.input.columns import bind_columns, expected_kinds
from ..job.input.reader import Input, open_input
from ..job.load import load_job
from ..job.messages import listed
from ..job.output.results import result_schema
from ..sampling_params import SAMPLING_FIELDS
from .target_file import target_file

QUESTIONS = ("question", "query", "problem")
TEXTS = ("text", "content", "sentence", "document", "body", "input", "title")
IDS = ("id", "uid", "uuid", "key", "custom_id", "idx", "index", "question_id", "task_id", "doc_id")


@dataclass
class Guess:
    """What the columns of an input are for.

    Args:
        task: of the job.
        reason: in words, for a comment.
        roles: role → column, where they have other names; or → None.
        template: that of the prompt; None where a column has it.
        choice_template: of a score job with choices.
        renamed: column that the job adds → another name, where the input has a column of its name.
    """

    task: str
    reason: str
    roles: dict[str, str | None] = field(default_factory=dict)
    template: str | None = None
    choice_template: str | None = None
    renamed: dict[str, str] = field(default_factory=dict)

    def settings(self, model: str, data: str, output: str) -> dict[str, Any]:
        """The job's settings."""
        found: dict[str, Any] = {"task": self.task, "model": {"path": model}, "input": {"path": data}}
        found["input"] |= {"columns": self.roles} | ({} if self.template is None else {"template": self.template})
        if self.choice_template is not None:
            found["score"] = {"choice_template": self.choice_template}
        return {**found, "output": {"path": output, "columns": self.renamed}}


def init(data: str, target: str | None = None, *, model: str = "demo", overwrite: bool = False) -> str:
    """Writes a job file for an input.

    Args:
        data: the input, as in `input.path`.
        target: the job file; None puts it into the current folder, under the input's name.
        model: as in `model.path`.
        overwrite: replace a job file that exists.

    Returns:
        The path of the job file.

    Raises:
        ConfigurationError: the input cannot be read, or no column can be a prompt; nothing has been written.
    """
    stem = re.sub(r"[^\w.-]+", "_", os.path.basename(data.rstrip("/")).split(".")[0]) or "job"
    target = target or f"{stem}.yaml"
    source = open_input(data, "auto", {})
    guess = _guess(source.schema)
    output = f"out/{stem}"
    source = open_input(data, "auto", expected_kinds(load_job(guess.settings(model, data, output))))
    _bind(guess, source, guess.settings(model, data, output))
    with target_file(target, overwrite=overwrite) as file:
        file.write(_text(guess, source, model, data, output).encode())
    return target


def _guess(schema: pa.Schema) -> Guess:
    """What the columns are for, by their names and types."""
    known = {name.lower(): name for name in reversed(schema.names)}
    texts = [column.name for column in schema if is_utf8(column.type)]
    question = next((known[name] for name in (*QUESTIONS, "prompt") if known.get(name) in texts), None)
    choices = known.get("choices")
    has_choices = choices is not None and is_texts(schema.field(choices).type)
    guess: Guess | None = None
    if "context" in known and ("continuation" in known or has_choices):
        roles = _named(known, "context", "continuation" if "continuation" in known else "choices", "answer")
        guess = Guess("score", "context with what may follow", roles)
    elif has_choices and question is not None:
        template = f"Question: {_printed(question)}\nAnswer:"
        guess = Guess("score", "questions with choices", _named(known, "choices", "answer"), template, " {{ choice }}")
    elif "messages" in known and is_messages(schema.field(known["messages"]).type):
        guess = Guess("generate", "conversations", _named(known, "messages"))
    elif known.keys() & {"prompt", "prompt_token_ids"}:
        name = "prompt" if "prompt" in known else "prompt_token_ids"
        guess = Guess("generate", "prompts", _named(known, name))
    elif (instruction := known.get("instruction")) in texts and instruction is not None:
        more = next((known[name] for name in ("input", "context") if known.get(name) in texts), None)
        middle = "" if more is None else f"Input: {_printed(more)}\n\n"
        template = f"Instruction: {_printed(instruction)}\n\n{middle}Response:"
        guess = Guess("generate", "instructions", template=template)
    elif question is not None:
        guess = Guess("generate", "questions", template=f"Question: {_printed(question)}\n\nAnswer:")
    elif texts:
        column = next((known[name] for name in TEXTS if known.get(name) in texts), texts[0])
        guess = Guess("generate", f"the texts of the column {column!r}", {"prompt": column})
    if guess is None:
        raise ConfigurationError(
            f"found no column of texts or messages, expected one: there are {listed(schema.names) or 'none'}. In a job "
            "file of your own, input.template makes prompts of any columns"
        )
    if "id" not in schema.names and (found := next((known[one] for one in IDS if one in known), None)):
        guess.roles["id"] = found
    return guess


def _printed(column: str) -> str:
    """What prints a column in a template; an empty text where it is null."""
    return f"{{{{ {column} or '' }}}}"


def _named(known: Mapping[str, str], *roles: str) -> dict[str, str | None]:
    """The columns of roles, where a column has the role's name but for upper case."""
    return {role: known[role] for role in roles if role in known and known[role] != role}


def _bind(guess: Guess, source: Input, settings: dict[str, Any]) -> None:
    """Takes roles from columns that cannot have them, and gives other names to columns that the job adds.

    Raises:
        ConfigurationError: the columns do not make a job.
    """
    job = load_job(settings)
    try:
        columns = bind_columns(job, source)
    except ConfigurationError:
        taken = [name for name in source.schema.names if name in SAMPLING_FIELDS or name == "sampling"]
        guess.roles |= dict.fromkeys(taken)
        job = load_job({**settings, "input": {**settings["input"], "columns": guess.roles}})
        columns = bind_columns(job, source)
    names = {*columns.passed}
    for name in result_schema(job, columns).names:
        if name in names:
            guess.renamed[name] = next(new for number in range(2, 1000) if (new := f"{name}_{number}") not in names)


def _text(guess: Guess, source: Input, model: str, data: str, output: str) -> str:
    """The job file."""
    columns = "\n".join(f"#   {column.name}: {column.type}" for column in source.schema)
    sampling = [name for name in source.schema.names if name in SAMPLING_FIELDS and name not in guess.roles]
    lines = [
        "# yaml-language-server: $schema=job.schema.json",
        f"# A job over {len(source.files):,} file(s) with {source.num_rows:,} rows: {guess.reason}. The columns:",
        columns,
        "# Editors check this file after: rwkv-batch schema > job.schema.json",
        "",
        f"task: {guess.task}",
        "",
        "model:",
        f"  path: {_yaml(model)}            # demo, a .pth or .safetensors file, a folder, or hf://owner/repo/file",
        "",
        "input:",
        f"  path: {_yaml(data)}",
    ]
    if guess.roles:
        lines.append(f"  columns: {_yaml(guess.roles)}            # role: column; null: no column has the role")
    if sampling and guess.task == "generate":
        lines.append(f"  # The column(s) {', '.join(sampling)} set sampling parameters of their rows. As data alone:")
        lines.append(f"  # columns: {_yaml(dict.fromkeys(sampling))}")
    if guess.template is not None:
        lines += [
            "  # Jinja: {{ name }} prints a column; a null is printed as nothing.",
            f"  template: {_yaml(guess.template)}",
        ]
    lines += ["", *_task_lines(guess), "", "output:", f"  path: {_yaml(output)}            # a folder for the results"]
    if guess.renamed:
        lines.append(f"  columns: {_yaml(guess.renamed)}            # the input has columns with these names")
    return "\n".join(lines) + "\n"


def _task_lines(guess: Guess) -> Sequence[str]:
    if guess.task == "score":
        choice = f"  choice_template: {_yaml(guess.choice_template)}" if guess.choice_template is not None else None
        return [
            "score:",
            "  add_bos_token: false            # true: token 0 before every context",
            *([choice] if choice else []),
        ]
    stop = '["\\n\\n"]' if guess.template is not None else "null"
    return [
        "sampling:",
        "  max_tokens: 256            # the largest number of tokens of a completion",
        "  temperature: 1.0            # 0: always the most likely token",
        "  top_p: 0.85",
        "  n: 1            # completions of each prompt",
        f"  stop: {stop}            # texts that end a completion; null: those of the chat format, or none",
    ]


def _yaml(value: Any) -> str:
    """A value in JSON, which is YAML, with `${` written as job files want it."""
    return json.dumps(value, ensure_ascii=False).replace("${", "$${")
