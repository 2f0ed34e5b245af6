"""The results of a job in OpenAI's batch format: an output file, and an error file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import groupby
from typing import Any, BinaryIO

from ..errors import ConfigurationError
from .finished import Finished
from .plain_values import to_json

FINISH_REASONS = {"length": "length"}
"""Finish reason of a job → that of OpenAI, which knows fewer: all others are "stop"."""


def write_openai(finished: Finished, file: BinaryIO, error_file: BinaryIO) -> tuple[int, int]:
    """Writes a line for each input row: rows that are ok to one file, error rows to the other.

    Returns:
        The numbers of lines in both.

    Raises:
        ConfigurationError: the job has another task, or its parts have no column with the role id.
    """
    if finished.task != "generate":
        raise ConfigurationError("--format openai: got a job with task score, expected one with task generate")
    id_column = finished.id_column()
    if id_column is None:
        raise ConfigurationError(
            "--format openai: got a job whose output has no column with the role id, expected one: it is the custom_id"
        )
    common = {"created": int(time.time()), "model": finished.config().get("model", {}).get("path", "rwkv")}
    prefix = f"batch_req_{finished.job['fingerprint'][:12]}"
    rows = bad = 0
    for index, records in enumerate(_rows(finished, id_column)):
        line: dict[str, Any] = {"id": f"{prefix}_{index}", "custom_id": _custom_id(records[0]["id"])}
        if records[0]["status"] == "error":
            error = {"code": records[0]["error_code"], "message": records[0]["error"]}
            line |= {"response": None, "error": error}
            bad += 1
        else:
            body = {**_body(records), **common, "usage": _usage(records)}
            response = {"status_code": 200, "request_id": f"{prefix}_{index}", "body": body}
            line |= {"response": response, "error": None}
            rows += 1
        target = error_file if line["response"] is None else file
        target.write(f"{to_json(line)}\n".encode(errors="backslashreplace"))
    return rows, bad


def _rows(finished: Finished, id_column: str) -> Iterator[list[dict[str, Any]]]:
    """Yields for each input row its records, with the columns that are needed under the job's own names."""
    own = ("sample_index", "completion", "finish_reason", "status", "error_code", "error")
    wanted = [*own, "prompt_tokens", "completion_tokens"]
    names: dict[str, str] = {name: found for name in wanted if (found := finished.column(name))}
    names |= {"id": id_column} | ({"messages": found} if (found := finished.role("messages")) else {})
    has_messages = finished.job["settings"].get("input.columns.messages") is not None
    has_others = any(
        finished.job["settings"].get(name) is not None
        for name in ("input.columns.prompt", "input.columns.prompt_token_ids")
    )
    if has_messages and has_others and "messages" not in names:
        raise ConfigurationError(
            "--format openai: the job has prompts of several kinds, and its output lacks the column "
            f"{finished.job['settings']['input.columns.messages']!r} that tells them apart"
        )

    def records() -> Iterator[dict[str, Any]]:
        row = -1
        for batch in finished.batches([*dict.fromkeys(names.values())]):
            for record in batch.to_pylist():
                found = {name: record[column] for name, column in names.items()}
                row += found["sample_index"] == 0
                is_chat = found.get("messages") is not None if has_others else has_messages
                yield {**found, "row": row, "is_chat": is_chat}

    for _, group in groupby(records(), lambda record: record["row"]):
        yield list(group)


def _body(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The completions of a row, as chat/completions or completions answers."""
    is_chat = records[0]["is_chat"]
    choices = []
    for record in records:
        text = record["completion"]
        answer = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        reason = FINISH_REASONS.get(record["finish_reason"], "stop")
        choices.append({"index": record["sample_index"], **answer, "logprobs": None, "finish_reason": reason})
    return {"object": "chat.completion" if is_chat else "text_completion", "choices": choices}


def _usage(records: list[dict[str, Any]]) -> dict[str, int]:
    prompt = records[0]["prompt_tokens"]
    completion = sum(record["completion_tokens"] for record in records)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _custom_id(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else to_json(value)
