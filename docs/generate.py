"""Writes the pages of docs/reference that come from the code, and the schemas in jobs/: `python docs/generate.py`.

A test compares the files with what this script makes of the present code.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from rwkv_batch.chat_calls import ChatCalls
from rwkv_batch.cli import _parser as main_parser
from rwkv_batch.commands.schema import job_schema, suite_schema
from rwkv_batch.job.config import JobConfig, Setting, describe_settings, expected_of
from rwkv_batch.job.fingerprint import HARMLESS, PASSED
from rwkv_batch.job.input.columns import Columns
from rwkv_batch.job.input.score_columns import Scored
from rwkv_batch.job.output.extra import TYPES
from rwkv_batch.job.output.results import result_schema
from rwkv_batch.job.report.error_codes import ERROR_CODES
from rwkv_batch.llm import LLM
from rwkv_batch.measure.bench import _parser as bench_parser
from rwkv_batch.outputs import CompletionOutput, Logprob, RequestOutput, ScoreOutput
from rwkv_batch.sampling_params import SAMPLING_FIELDS, SamplingParams
from rwkv_batch.structured_outputs import StructuredOutputsParams
from rwkv_batch.suite.config import HarnessSection, JobSection, SuiteConfig, SuiteOutput
from rwkv_batch.text.chat import ChatSettings
from rwkv_batch.vllm_arguments import (
    ABSENT_METHODS,
    GENERATE_ARGUMENTS,
    LLM_ARGUMENTS,
    SAMPLING_ARGUMENTS,
    Effect,
    Foreign,
)

FOLDER = Path(__file__).parent / "reference"
NOTICE = "<!-- Written by docs/generate.py: change the code or that script, then run it. -->"


def pages() -> dict[str, str]:
    """File name below docs/reference → its text."""
    return {
        "job-file.md": "\n".join(_job_file()),
        "sampling-params.md": "\n".join(_sampling_params()),
        "llm.md": "\n".join(_llm()),
        "vllm.md": "\n".join(_vllm()),
        "command-line.md": "\n".join(_command_line()),
        "output-columns.md": "\n".join(_output_columns()),
        "error-codes.md": "\n".join(_error_codes()),
        "suite-file.md": "\n".join(_suite_file()),
        "../../jobs/job.schema.json": json.dumps(job_schema(), indent=1, ensure_ascii=False) + "\n",
        "../../jobs/suite.schema.json": json.dumps(suite_schema(), indent=1, ensure_ascii=False) + "\n",
    }


def _prose(*paragraphs: str) -> Iterator[str]:
    """Paragraphs in lines of at most 120 characters, each with an empty line after it."""
    for paragraph in paragraphs:
        yield from (*textwrap.wrap(paragraph, 120, break_long_words=False, break_on_hyphens=False), "")


def _table(head: str, rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A Markdown table; `head` has the column names, divided by |."""
    columns = head.split("|")
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def _yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _job_file() -> Iterator[str]:
    yield from _prose(
        "# Job file",
        NOTICE,
        "A job file is YAML with the sections below. Unknown keys, wrong types and impossible values are refused "
        "before the model is loaded, all at once. `-o section.key=value` on the command line replaces a setting. "
        "Relative paths are relative to the folder in which the command is started; `~` at the beginning of a path is "
        "the home folder.",
        "`${NAME}` in a job file is the value of an environment variable, as in Docker Compose; `${NAME:-default}` has "
        "a default, `${NAME:?message}` a message of its own. A variable that is not set is an error. A value without "
        "quotes has the type that it would have if it were written there: `limit: ${N}` is a number, "
        '`limit: "${N}"` is text. `$${` is the text `${`. Values of variables stand in logs and reports: give no '
        "secret to a job in this way. Top-level keys that begin with `x-` are ignored: a place for remarks and for "
        "YAML anchors. `rwkv-batch run -` reads the job file from standard input.",
        "*Resume: must stay* means that the output of a started job is refused (exit code 4) when the setting gives "
        "another result than before. Paths of the model and of the input are compared by content: a moved file is no "
        "change. A setting of the section `sampling` is a field of [sampling parameters](sampling-params.md) too.",
    )
    for section, settings in groupby(describe_settings(), key=lambda setting: setting.name.partition(".")[0]):
        yield from (f"## {section}", "")
        head = "setting|values|default|resume|meaning"
        yield from _table(head, (_setting(one, section) for one in settings))


def _suite_file() -> Iterator[str]:
    yield from _prose(
        "# Suite file",
        NOTICE,
        "A suite file is YAML, with references to environment variables as in a [job file](job-file.md). Unknown keys, "
        "wrong types and impossible values are refused before a model is loaded, all at once, and so are those of the "
        "job files that it names. [Evaluation](../how-to/evaluation.md#one-suite-many-checkpoints) explains suites.",
    )
    for title, section in SUITE_SECTIONS.items():
        yield from (f"## {title}", "")
        yield from _prose(section.__doc__ or "")
        rows = [
            (
                f"`{name}`",
                expected_of(field),
                "required" if field.is_required() else f"`{_yaml(field.default)}`",
                field.description or "",
            )
            for name, field in section.model_fields.items()
        ]
        yield from _table("key|values|default|meaning", rows)


SUITE_SECTIONS = {
    "The file": SuiteConfig,
    "Tasks of the harness": HarnessSection,
    "Jobs": JobSection,
    "output": SuiteOutput,
}


def _setting(setting: Setting, section: str) -> tuple[str, ...]:
    default = "required" if setting.is_required else f"`{_yaml(setting.default)}`"
    resume = "may change" if setting.name in HARMLESS or setting.name.startswith("run.ray.") else "must stay"
    if setting.name == PASSED:
        resume = "may change until the first part"
    return (
        f"`{setting.name.removeprefix(f'{section}.')}`",
        setting.expected,
        default,
        resume,
        re.sub(r"\bNone\b", "null", setting.doc),
    )


def _described(thing: Any, section: str = "Args") -> dict[str, str]:
    """A section of a docstring: name → meaning. Names that share a line have the same meaning."""
    text = inspect.getdoc(thing) or ""
    match = re.search(rf"^{section}:\n(.*?)(?=^\s*$|\Z)", text + "\n", re.DOTALL | re.MULTILINE)
    found: dict[str, str] = {}
    names: list[str] = []
    for line in (match[1] if match else "").splitlines():
        start = re.match(r"    ([\w, ]+): (.*)", line)
        if start:
            names = start[1].split(", ")
            found |= dict.fromkeys(names, start[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _sampling_params() -> Iterator[str]:
    meanings = SamplingParams.field_docs()
    yield from _prose(
        "# Sampling parameters",
        NOTICE,
        "`SamplingParams` of the Python API, the `sampling` section of a job file, and columns of the same names in a "
        "job's input (one row's value replaces the job's, where it is not null) have these fields. A wrong value "
        "raises `ValueError` with field, value and range; in a column it makes an error row with the code "
        "`bad_sampling`.",
    )
    rows = (
        (f"`{name}`", f"`{field.type}`", declared.description, f"`{field.default!r}`", meanings[name])
        for (name, declared), field in zip(SAMPLING_FIELDS.items(), fields(SamplingParams), strict=True)
    )
    yield from _table("field|type|values|default|meaning", rows)
    yield from _prose(
        "From logits to a token, in this order: penalties; `logit_bias`; bans (`allowed_token_ids`, `bad_token_ids`, "
        "`min_tokens`, constraints); temperature; top-k, top-p and min-p; the draw. top-p acts on what top-k and min-p "
        "have left: `top_p` is a share of the probability of these tokens, as in vLLM. With `top_p_order: rwkv` the "
        "temperature comes after the filters, and `top_p` is a share of the probability of all tokens, as in ChatRWKV; "
        "what each filter keeps is then drawn from.",
        "Log-probabilities are the model's own, before all of these (`logprobs_mode: raw_logprobs`). With "
        "`processed_logprobs`, those of sampled tokens are after all of these, as in vLLM: of the distribution that "
        "the token is drawn from, and -inf for a token that cannot be drawn. A greedy row "
        "(`temperature: 0`) has no temperature and no filters, so that its distribution is the one after the bans. "
        "The log-probabilities of a prompt's tokens, and of task score, are always the model's own. Processed ones "
        "cost time: they are computed in PyTorch for every row, and a GPU's decode steps are not recorded.",
        "Bans that leave nothing to sample are refused, with the words *nothing may be sampled*: a vocabulary without "
        "a token that is allowed and not bad; the end of text alone with `min_tokens` or `ignore_eos`; a constraint "
        "whose first tokens are all banned. Where a text comes to a point at which its constraint allows banned tokens "
        "only, its row is an error row, `bad_sampling`. A text that its constraint completes ends there, even where "
        "the end of text is banned.",
        "`max_tokens: null` (in Python `None`) is 65,536 tokens: an RWKV model has no context length that would end a "
        "completion.",
    )


def _llm() -> Iterator[str]:
    yield from _prose(
        "# Python API",
        NOTICE,
        "`from rwkv_batch import LLM, SamplingParams, run_job`. Names and shapes follow vLLM's offline API.",
        "## LLM",
    )
    meanings = _described(LLM)
    parameters = inspect.signature(LLM).parameters.values()
    given = [(f"`{_starred(p)}`", _default(p), meanings[p.name]) for p in parameters]
    yield from _table("argument|default|meaning", given)
    attributes = _described(LLM, "Attributes") | {"chat_format": _first_paragraph(vars(ChatCalls)["chat_format"].fget)}
    yield from _table("attribute|meaning", ((f"`{name}`", what) for name, what in attributes.items()))
    yield from ("## Methods of LLM", "")
    for name in dict.fromkeys([*vars(LLM), *vars(ChatCalls)]):
        if not name.startswith("_") and callable(getattr(LLM, name)):
            yield from _method(f"LLM.{name}", getattr(LLM, name))
    yield from ("## Results", "")
    for kind in (RequestOutput, CompletionOutput, ScoreOutput, Logprob):
        yield from (f"### {kind.__name__}", "", _first_paragraph(kind), "")
        meanings = _described(kind, "Attributes")
        rows = [(f"`{field.name}`", f"`{field.type}`", meanings[field.name]) for field in fields(kind)]
        yield from _table("field|type|meaning", rows)
    yield from ("## Settings", "")
    for group in (ChatSettings, StructuredOutputsParams):
        yield from (f"### {group.__name__}", "", _first_paragraph(group), "")
        defaults = {field.name: field.default for field in fields(group)}
        described = [(f"`{name}`", f"`{defaults[name]!r}`", what) for name, what in _described(group).items()]
        yield from _table("field|default|meaning", described)
    from rwkv_batch.job.execute import Outcome, run_job

    yield from ("## Jobs from Python", "")
    yield from _method("run_job", run_job)
    yield from ("### Outcome", "", _first_paragraph(Outcome), "")
    about = [(f"`{name}`", meaning) for name, meaning in _described(Outcome).items()]
    about += [(f"`{name}`", _first_paragraph(getattr(Outcome, name).fget)) for name in ("output", "report")]
    yield from _table("field|meaning", about)


def _vllm() -> Iterator[str]:
    yield from _prose(
        "# vLLM's arguments",
        NOTICE,
        "What becomes of the arguments of vLLM's offline API and of Hugging Face's `from_pretrained` that are none "
        "here under the same name. [Coming from vLLM](../how-to/vllm.md) has examples.",
        "A name without effect is accepted, with one warning in a process. A refused name raises `ConfigurationError`, "
        "unless it asks for nothing: None, False, what is empty, and the values after *but*.",
    )
    for title, table in VLLM_TABLES.items():
        yield from (f"## {title}", "")
        foreign = sorted(table.values(), key=lambda one: (ORDER.index(one.effect), one.text, one.name))
        grouped = groupby(foreign, key=lambda one: (one.effect, one.text))
        yield from _table("vLLM or Hugging Face|here", ((_names(group), _becomes(*key)) for key, group in grouped))
    yield from ("## Methods that are absent", "")
    yield from _table("vLLM's `LLM`|here", ((f"`{name}`", what) for name, what in ABSENT_METHODS.items()))


ORDER = ("renamed", "refused", "none")
VLLM_TABLES = {
    "Arguments of LLM": LLM_ARGUMENTS,
    "Fields of SamplingParams": SAMPLING_ARGUMENTS,
    "Arguments of generate and chat": GENERATE_ARGUMENTS,
}


def _names(group: Iterable[Foreign]) -> str:
    """The names of a group, with the values under which a refused one asks for nothing."""
    return ", ".join(
        f"`{one.name}`" + (f" but {_shown(one.off)}" if one.effect == "refused" and one.off not in ((), (0,)) else "")
        for one in group
    )


def _shown(values: Iterable[Any]) -> str:
    return ", ".join(f"`{value!r}`" for value in values)


def _becomes(effect: Effect, text: str) -> str:
    return {"renamed": f"`{text}`", "refused": f"refused: {text}", "none": f"no effect: {text}"}[effect]


def _first_paragraph(thing: Any) -> str:
    return " ".join(inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0].split())


def _method(name: str, method: Callable[..., Any]) -> Iterator[str]:
    parameters = [p for p in inspect.signature(method).parameters.values() if p.name not in ("self", "cls")]
    shown = ", ".join(_starred(p) if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)
    yield from (f"### {name}", "", f"`{name}({shown})`", "")
    text = inspect.cleandoc(method.__doc__ or "")
    before, *_ = re.split(r"^(?:Args|Raises|Returns):", text, maxsplit=1, flags=re.MULTILINE)
    for paragraph in before.strip().split("\n\n"):
        if paragraph.startswith(">>>"):
            yield from ("```text", paragraph, "```", "")
        else:
            yield from _prose(paragraph)
    if meanings := _described(method):
        starred = {p.name: _starred(p) for p in parameters}
        rows = [(f"`{starred.get(argument, argument)}`", what) for argument, what in meanings.items()]
        yield from _table("argument|meaning", rows)
    if raises := re.search(r"^Raises:\n((?: +.*\n?)+)", text, re.MULTILINE):
        yield from (f"- raises {line}" for line in _joined(raises[1]))
        yield ""


def _starred(parameter: inspect.Parameter) -> str:
    """The name of a parameter; with ** where it takes all other arguments."""
    return "**" * (parameter.kind is parameter.VAR_KEYWORD) + parameter.name


def _default(parameter: inspect.Parameter) -> str:
    return "" if parameter.default is parameter.empty else f"`{parameter.default!r}`"


def _joined(section: str) -> Iterator[str]:
    """The entries of an indented section, each on one line."""
    yield from (" ".join(entry.split()) for entry in re.split(r"^ {4}(?! )", section, flags=re.MULTILINE) if entry)


def _command_line() -> Iterator[str]:
    yield from _prose(
        "# Command line",
        NOTICE,
        "`python -m rwkv_batch.run JOB.yaml` is the same as `rwkv-batch run JOB.yaml`. "
        "[Troubleshooting](../how-to/troubleshooting.md#exit-codes) has the exit codes.",
    )
    commands = next(a for a in main_parser()._actions if isinstance(a, argparse._SubParsersAction))
    helps = {choice.dest: choice.help or "" for choice in commands._choices_actions}
    for name, parser in {**commands.choices, "bench": bench_parser()}.items():
        sentence = parser.description or f"{helps[name][:1].upper()}{helps[name][1:]}."
        yield from _prose(f"## {name}", sentence)
        if (parser.epilog or "").startswith("example:"):
            example = (parser.epilog or "").splitlines()[0].removeprefix("example:").strip()
            yield from _prose(f"Example: `{example}`")
        rows = [_option(action) for action in parser._actions if not isinstance(action, argparse._HelpAction)]
        if rows:
            yield from _table("argument|meaning", rows)


def _option(action: argparse.Action) -> tuple[str, str]:
    values = action.metavar or ("" if action.nargs == 0 else action.dest.upper())
    names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    shown = f"{names} {values}".strip() if action.option_strings else names
    return f"`{shown}`", (action.help or "").replace("%%", "%")


def _error_codes() -> Iterator[str]:
    yield from _prose(
        "# Error codes",
        NOTICE,
        "`error_code` of a bad row says what is wrong with it, `error` says it in a sentence. All other rows are "
        "served. In Python results have the same codes; a value of a wrong type makes `generate` and `score` raise "
        "`ValueError` before they begin.",
    )
    rows = ((f"`{code}`", meaning.cause, meaning.advice) for code, meaning in ERROR_CODES.items())
    yield from _table("error code|cause|what to do", rows)


def _output_columns() -> Iterator[str]:
    yield from _prose(
        "# Output columns",
        NOTICE,
        "A part repeats the input's columns (`output.input_columns`), has those of `output.extra`, and adds those "
        "below. `output.columns` gives them other names. The schema is fixed before the first row. Columns of an error "
        "row are null, except `status`, `error_code`, `error` and, in task generate, `sample_index` (0), "
        "`finish_reason` and, where it is known, `prompt_tokens`. [Output](output.md) describes files and folders.",
        "## task: generate",
        "One output row for each input row and sample, in input order.",
    )
    yield from _schema("generate", None, GENERATE_MEANINGS)
    yield from _prose("## task: score, with continuation or text", "One output row for each input row.")
    yield from _schema("score", Scored("continuation"), SCORE_MEANINGS)
    yield from _prose(
        "## task: score, with choices", "Lists have one element for each choice, in the order of the choices."
    )
    yield from _schema("score", Scored("choices"), SCORE_MEANINGS)
    yield from _prose("## output.extra", "These columns come after the input's. They are there in error rows too.")
    yield from _table(
        "column|type|meaning", ((f"`{name}`", f"`{kind}`", EXTRA_MEANINGS[name]) for name, kind in TYPES.items())
    )


EXTRA_MEANINGS = {
    "prompt": "the text that the model read, of task score the context; null where it is token ids, and where the row "
    "is an error before its text is made",
    "input_row": "number of the row in the whole input, from 0, as in messages about rows",
    "input_file": "file of the row: its absolute path, or its URL, when the job was started",
}
_STATUS = {
    "status": "`ok`, or `error`",
    "error_code": "null, or one of the [error codes](error-codes.md)",
    "error": "null, or a sentence",
}
GENERATE_MEANINGS = {
    "sample_index": "number of the sample, from 0 to `n` - 1",
    "completion": "the text, without the stop string",
    "finish_reason": "`stop` (end of text, a stop string or a stop token) or `length` (`max_tokens`); in an error row "
    "`error`",
    "stop_reason": "the stop string, or the token id (0 is end of text); null where `finish_reason` is `length`",
    **_STATUS,
    "prompt_tokens": "tokens of the prompt",
    "completion_tokens": "tokens of the completion",
    "cumulative_logprob": "sum of the sampled tokens' log-probabilities (natural logarithm), under the distribution "
    "that `engine.logprobs_mode` names",
    "token_ids": "the sampled tokens; only with `output.token_ids`",
    "token_logprobs": "log-probability of each sampled token, under the same distribution; only with `output.logprobs`",
}
SCORE_MEANINGS = {
    "logprob": "sum of the log-probabilities of the continuation's tokens (natural logarithm)",
    "is_greedy": "each token of the continuation is the most likely one in its place",
    "num_tokens": "tokens of the continuation; of a document in chunks, those that have a score",
    **_STATUS,
    "token_ids": "the continuation's tokens; only with `output.token_ids`",
    "token_logprobs": "log-probability of each token; only with `output.logprobs`",
    "num_bytes": "bytes of the continuation, or of the text, in UTF-8; null where it is token ids",
    "best_choice": "index of the choice with the largest `logprob`",
    "best_choice_norm": "the same by `logprob` per character of the choice; not where choices are token ids",
    "best_choice_bytes": "the same by `logprob` per byte of the choice; not where choices are token ids",
    "correct": "`best_choice` is the answer; only with a column `answer`, and null where that is null",
    "correct_norm": "`best_choice_norm` is the answer",
    "correct_bytes": "`best_choice_bytes` is the answer",
}


def _schema(task: str, scored: Scored | None, meanings: dict[str, str]) -> Iterator[str]:
    output = {"path": "out", "token_ids": True, "logprobs": True}
    required = {"model": {"path": "demo"}, "input": {"path": "prompts.parquet"}, "output": output}
    job = JobConfig.model_validate({"task": task, **required})
    schema: pa.Schema = result_schema(job, Columns({}, {}, None, "answer", None, (), (), scored=scored))
    yield from _table("column|type|meaning", [(f"`{f.name}`", f"`{f.type}`", meanings[f.name]) for f in schema])


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
