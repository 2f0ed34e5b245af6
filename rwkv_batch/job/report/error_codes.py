"""The error codes of rows: what each means and what to do. docs/reference/error-codes.md is made of them."""

from __future__ import annotations

import re
from typing import NamedTuple


class ErrorCode(NamedTuple):
    """The meaning of an error code, in Markdown. Links are relative to docs/reference."""

    cause: str
    advice: str

    @property
    def plain_advice(self) -> str:
        """What to do, as text without links."""
        return _LINK.sub(lambda link: link[1] or "", self.advice).replace("`", "")


_LINK = re.compile(r"[:;] (?:see )?\[[^]]*\]\([^)]*\)|\[([^]]*)\]\([^)]*\)")
"""A link; one that stands for itself is removed with what leads to it."""

ERROR_CODES = {
    "null_prompt": ErrorCode(
        "the cell with the prompt, the context, the continuation or the choices is null",
        "fill the cell, or leave the row out",
    ),
    "bad_type": ErrorCode(
        "a cell cannot be read, or holds what its column does not take: a null among token ids, text beside "
        "ids, an answer that names no choice; a row of CSV has another number of fields than the first line",
        "mend the cell; the sentence names the column",
    ),
    "bad_json": ErrorCode(
        "a line of JSON Lines is no JSON object, or has more than 100 lists and objects inside each other",
        "mend the line",
    ),
    "read_error": ErrorCode(
        "a cell is in damaged or encrypted data, or follows such a cell in its row group; the sentence names "
        "the file, the place and the column",
        "put a whole copy of the file in its place, and run the job into another output. What could be read "
        "is there, and so is the completion if only columns that are passed on are affected; see "
        "[Parquet](input-formats.md#parquet)",
    ),
    "bad_messages": ErrorCode(
        "a message has a role or a content that the chat format does not know, the list is empty, `tools` are "
        "no definitions, or a chat template refuses the messages",
        "roles are `system` (or `developer`), `user`, `assistant` and `tool` (or `function`); content is "
        "text: [messages](input-formats.md#messages); "
        "[conversations](../how-to/sampling-and-chat.md#conversations)",
    ),
    "bad_sampling": ErrorCode(
        "a sampling column has a value out of range, or a constraint that cannot be compiled, or bans that "
        "leave nothing to sample, or a request of a batch file asks for what is not supported",
        "the sentence names the field and the range: [sampling parameters](sampling-params.md)",
    ),
    "constraint_too_large": ErrorCode(
        "a JSON schema, regular expression or grammar takes more than `engine.constraint_timeout` (10 s), "
        "more than 4 GiB to compile, has more than 1 Mi characters, is nested more than about 120 levels "
        "deep, or the allowed tokens of a step take too much work to find",
        "simplify it: fewer optional properties, smaller counts, shorter lists; or raise `engine.constraint_timeout`",
    ),
    "prompt_too_long": ErrorCode(
        "the prompt, or the context, has more tokens than `input.max_prompt_tokens`",
        "raise the limit, or shorten the prompt",
    ),
    "token_out_of_range": ErrorCode(
        "the model's vocabulary has no such token id",
        "use ids of the model's tokenizer",
    ),
    "template_error": ErrorCode(
        "`input.template`, or a template of the section `score`, failed for this row, would print a null or "
        "an object that is no data, or takes more than 3 s, 1 GiB of memory or 32 Mi characters",
        "the sentence has Jinja's message and the columns, or the columns that are null; write `{{ name or '' "
        "}}` where a null is right, and `{{ '' if name is none else name }}` for numbers, because `0 or ''` "
        "is the empty text",
    ),
    "invalid_text": ErrorCode(
        "the text holds half of a surrogate pair, or bytes that are not UTF-8",
        "mend the text where it was cut, or convert the file to UTF-8",
    ),
    "unencodable_text": ErrorCode(
        "the vocabulary has no token for a byte of the text, or the tokenizer fails at it",
        "use the tokenizer that the model was trained with",
    ),
    "no_choices": ErrorCode(
        "the list of choices is empty",
        "give at least one choice",
    ),
    "no_tokenizer": ErrorCode(
        "text, a stop string or a constraint, where the model has no tokenizer",
        "name a tokenizer, or give token ids",
    ),
    "not_finite": ErrorCode(
        "the model's numbers are not finite: float16 may have overflowed",
        "use bfloat16 or float32",
    ),
    "engine_crash": ErrorCode(
        "the row ended the process of its engine, the last time alone in the engine: in a job with several workers or "
        "on Ray, and with `LLM(data_parallel=N)`",
        "the sentence names the signal, the exit code or the error; the process has printed more to standard "
        "error. Where the engine is in the process of the job or of the program, the row ends that process",
    ),
    "abort": ErrorCode(
        "`LLM.abort` ended a row to score; never in a job",
        "",
    ),
}
