"""Result columns: their schema, which is fixed before the first row, and the arrays that fill them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import accumulate, count, pairwise
from sys import getsizeof
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from ...errors import ConfigurationError
from ...rows import ErrorRow, Finished, GenerateRow, RowInFlight, ScoreRow, text_arrays
from ..config import JobConfig
from ..input.columns import Columns
from ..messages import did_you_mean, listed

if TYPE_CHECKING:
    from ...rows import Completion, TokenScores

ROW_BYTES = 1000
"""Estimate of the bytes of a finished row's Python objects, without its texts, tokens and requests."""
REQUEST_BYTES = 700
"""Estimate of the bytes of a request and its completion, without tokens."""
SCORES_BYTES = 700
"""Estimate of the bytes of the scores of a text, without those of its tokens."""
TOKEN_SCORE_BYTES = 17


NORMS = ("", "_norm", "_bytes")
"""What is compared between choices: the log-likelihood; that per character; that per byte. See `best_choice`."""
LATER = frozenset({"num_bytes", *(f"best_choice{norm}" for norm in NORMS[1:]), *(f"correct{norm}" for norm in NORMS)})
"""Columns of task score that came after the first version."""


class TextMaker(Protocol):
    """The part of `rwkv_batch.text.detokenizer.Detokenizer` that makes texts of many completions at once."""

    def utf8(self, token_ids: np.ndarray, offsets: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


_STATUS = [("status", pa.string()), ("error_code", pa.string()), ("error", pa.string())]


def result_schema(job: JobConfig, columns: Columns) -> pa.Schema:
    """Returns the columns that the job adds to the input's."""
    if job.task == "score":
        return _score_schema(job, columns)
    fields = [
        ("sample_index", pa.int32()),
        ("completion", pa.string()),
        ("finish_reason", pa.string()),
        ("stop_reason", pa.string()),
        *_STATUS,
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("cumulative_logprob", pa.float64()),
    ]
    if job.output.token_ids:
        fields.append(("token_ids", pa.list_(pa.int32())))
    if job.output.logprobs:
        fields.append(("token_logprobs", pa.list_(pa.float32())))
    return pa.schema(fields)


def _score_schema(job: JobConfig, columns: Columns) -> pa.Schema:
    assert columns.scored is not None
    is_list = columns.scored.kind == "choices"
    scores = [("logprob", pa.float64()), ("is_greedy", pa.bool_()), ("num_tokens", pa.int32())]
    if job.output.token_ids:
        scores.append(("token_ids", pa.list_(pa.int32())))
    if job.output.logprobs:
        scores.append(("token_logprobs", pa.list_(pa.float32())))
    fields = [(name, pa.list_(kind) if is_list else kind) for name, kind in scores] + _STATUS
    if not is_list:
        return pa.schema([*fields, ("num_bytes", pa.int64())])
    norms = NORMS if columns.scored.has_texts else NORMS[:1]
    fields += [(f"best_choice{norm}", pa.int32()) for norm in norms]
    if columns.answer is not None:
        fields += [(f"correct{norm}", pa.bool_()) for norm in norms]
    return pa.schema(fields)


def without_later(results: pa.Schema) -> pa.Schema:
    """Returns the columns without those of `LATER`: those of a score job that an earlier version has started."""
    return pa.schema([field for field in results if field.name not in LATER])


def output_names(job: JobConfig, columns: Columns, results: pa.Schema) -> dict[str, str]:
    """Returns the columns that the job adds: its own name for each → the name in parts, as output.columns gives it.

    Args:
        results: as `result_schema` returns it. The columns of output.extra come on top.

    Raises:
        ConfigurationError: output.columns has a name that the job does not add, or two columns would have one name.
    """
    own = [*results.names, *dict.fromkeys(job.output.extra)]
    renamed = job.output.columns
    problems = []
    for name in (name for name in renamed if name not in own):
        hint = did_you_mean(name, own) or f"; it adds {listed(own)}"
        problems.append(f"output.columns.{name}: the job adds no column of this name{hint}")
    names = {name: renamed.get(name, name) for name in own}
    used = Counter(names.values())
    problems += [f"output.columns: got two columns named {name!r}, expected one" for name in used if used[name] > 1]
    common = [name for name in columns.passed if name in used]
    if common:
        free = {name: _free_name(name, {*columns.passed, *used}) for name in own if names[name] in common}
        proposed = {name: free.get(name, new) for name, new in names.items() if name in free or name in renamed}
        example = listed(f"{name}: {new}" for name, new in proposed.items())
        problems.append(
            f"output.columns: the input has columns with names that the output needs: {listed(common)}. Rename the "
            f"output's, for example columns: {{{example}}}, or leave the input's out of output.input_columns"
        )
    if problems:
        raise ConfigurationError("\n".join(problems))
    return names


def _free_name(name: str, taken: Container[str]) -> str:
    return next(free for free in (f"{name}_{number}" for number in count(2)) if free not in taken)


class Results:
    """Makes columns of finished rows.

    Args:
        task: of the job, "generate" or "score".
        schema: the columns that the job adds, as `result_schema` returns them.
        detokenizer: makes texts of token ids; None where there is no tokenizer, and every completion is "".
    """

    def __init__(self, task: str, schema: pa.Schema, detokenizer: TextMaker | None) -> None:
        self._is_score = task == "score"
        self._is_list = "best_choice" in schema.names
        self._schema = schema.insert(0, pa.field("row", pa.int64()))
        self._detokenizer = detokenizer

    def batch(self, rows: Sequence[Finished]) -> pa.RecordBatch:
        """Returns the results of some rows, after a column "row" with the rows' numbers.

        A row has as many records as samples, in their order; error rows come last.
        """
        failed = [row for row in rows if isinstance(row, ErrorRow)]
        done = [row for row in rows if isinstance(row, RowInFlight)]
        columns = [self._scored(done) if self._is_score else self._completed(done), self._failed(failed)]
        batches = [self._record_batch(found) for found in columns if len(found["row"])]
        return batches[0] if len(batches) == 1 else pa.concat_batches(batches)

    def _record_batch(self, columns: Mapping[str, Any]) -> pa.RecordBatch:
        """Returns a batch of these columns; result columns that are not among them are null."""
        count = len(columns["row"])
        arrays = [
            _array(columns[field.name], field.type) if field.name in columns else pa.nulls(count, field.type)
            for field in self._schema
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _failed(self, rows: Sequence[ErrorRow]) -> dict[str, Any]:
        """Returns the columns of error rows: one record for each."""
        columns: dict[str, Any] = {
            "row": [row.row for row in rows],
            "status": ["error"] * len(rows),
            "error_code": [row.error.code for row in rows],
            "error": [row.error.message for row in rows],
        }
        if self._is_score:
            return columns
        return columns | {
            "sample_index": [0] * len(rows),
            "finish_reason": ["error"] * len(rows),
            "prompt_tokens": [row.prompt_tokens for row in rows],
        }

    def _completed(self, rows: Sequence[RowInFlight]) -> dict[str, Any]:
        """Returns the columns of completed rows: one record for each sample."""
        completions = [completion for row in rows for completion in row.completions]
        lengths = [len(found.token_ids) for found in completions]
        columns: dict[str, Any] = {
            "row": np.repeat([row.row.row for row in rows], [len(row.completions) for row in rows]),
            "sample_index": [found.request.sample for found in completions],
            "completion": self._texts(completions),
            "finish_reason": [found.finish_reason for found in completions],
            "stop_reason": [None if found.stop_reason is None else str(found.stop_reason) for found in completions],
            "status": ["ok"] * len(completions),
            "prompt_tokens": [len(found.request.prompt_token_ids) for found in completions],
            "completion_tokens": lengths,
            "cumulative_logprob": [math.fsum(found.token_logprobs.tolist()) for found in completions],
        }
        token_ids = (found.token_ids for found in completions)
        return columns | self._of_tokens(token_ids, (found.token_logprobs for found in completions), lengths)

    def _scored(self, rows: Sequence[RowInFlight]) -> dict[str, Any]:
        """Returns the columns of scored rows: one record for each, with lists over its choices if it has choices."""
        ids: list[np.ndarray] = []
        scores: list[TokenScores] = []
        counts = []
        for row in rows:
            assert row.scoring is not None
            counts.append(len(row.scoring.continuations))
            ids += row.scoring.continuations
            for parts in row.scoring.parts_of_continuations(row.completions):
                scores += parts
        lengths = [len(found) for found in ids]
        token_logprobs = _joined((found.logprobs for found in scores), np.float64)
        of_tokens = token_logprobs.tolist()
        is_other = (~_joined((found.is_greedy for found in scores), bool)).tolist()
        spans = list(pairwise([0, *accumulate(lengths)]))
        logprobs = [math.fsum(of_tokens[start:end]) for start, end in spans]
        columns: dict[str, Any] = {
            "logprob": logprobs,
            "is_greedy": [True not in is_other[start:end] for start, end in spans],
            "num_tokens": lengths,
            **self._of_tokens(ids, [token_logprobs], lengths),
        }
        if self._is_list:
            columns = {
                name: _lists(_array(values, self._schema.field(name).type.value_type), counts)
                for name, values in columns.items()
            }
            starts = pairwise([0, *accumulate(counts)])
            columns |= self._choices(rows, [logprobs[start:end] for start, end in starts])
        elif "num_bytes" in self._schema.names:
            columns["num_bytes"] = [_num_bytes(row.row) for row in rows]
        return {"row": [row.row.row for row in rows], "status": ["ok"] * len(rows), **columns}

    def _choices(self, rows: Sequence[RowInFlight], logprobs: Sequence[Sequence[float]]) -> dict[str, Any]:
        """Returns the columns with the best choice of each row, and whether it is the right one.

        Args:
            logprobs: of each row those of its choices.
        """
        columns: dict[str, Any] = {}
        scored: list[Any] = [row.row for row in rows]
        answers = [row.answer for row in scored]
        for norm in NORMS:
            if f"best_choice{norm}" in self._schema.names:
                pairs = zip(logprobs, scored, strict=True)
                best = [best_choice(found, row.continuations, norm) for found, row in pairs]
                columns[f"best_choice{norm}"] = best
                columns[f"correct{norm}"] = [
                    None if right is None else found == right for found, right in zip(best, answers, strict=True)
                ]
        return columns

    def _of_tokens(
        self, ids: Iterable[np.ndarray], logprobs: Iterable[np.ndarray], lengths: Sequence[int]
    ) -> dict[str, pa.Array]:
        """Returns the columns with a value for each token that the job's schema has."""
        columns: dict[str, pa.Array] = {}
        if "token_ids" in self._schema.names:
            columns["token_ids"] = _lists(pa.array(_joined(ids, np.int32)), lengths)
        if "token_logprobs" in self._schema.names:
            columns["token_logprobs"] = _lists(pa.array(_joined(logprobs, np.float32)), lengths)
        return columns

    def _texts(self, completions: Sequence[Completion]) -> Any:
        """Returns the texts of completions, up to a stop string where there is one."""
        if self._detokenizer is None:
            return [""] * len(completions)
        data, ends = self._detokenizer.utf8(*text_arrays(completions))
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(data)]
        return pa.Array.from_buffers(pa.large_string(), len(completions), buffers).cast(pa.string())


def best_choice(logprobs: Sequence[float], choices: Sequence[Any], norm: str) -> int:
    """Returns the index of the choice with the highest log-likelihood, as it is or per unit of length; ties: the first.

    Args:
        choices: as they were scored.
        norm: of `NORMS`. The length of a choice is that of its text without one space at its beginning, which is the
            delimiter after the context, as in lm-evaluation-harness. A choice without any length comes last.
    """
    values = list(logprobs)
    if norm:
        texts = [choice.removeprefix(" ") for choice in choices]
        lengths = [len(text.encode() if norm == "_bytes" else text) for text in texts]
        values = [value / length if length else -math.inf for value, length in zip(values, lengths, strict=True)]
    return values.index(max(values))


def _num_bytes(row: Any) -> int | None:
    """Returns the bytes of a row's continuation in UTF-8; None where it is token ids."""
    (text,) = row.continuations
    return len(text.encode()) if isinstance(text, str) else None


def held_bytes(row: Finished) -> int:
    """Returns an estimate of the bytes that a finished row holds before it is in columns."""
    if isinstance(row, ErrorRow):
        return ROW_BYTES + getsizeof(row.error.message) + getsizeof(row.prompt)
    held = ROW_BYTES + _input_bytes(row.row)
    prompt: Any = None
    for found in row.completions:
        held += REQUEST_BYTES + found.token_ids.nbytes + found.token_logprobs.nbytes
        if found.request.prompt_token_ids is not prompt:  # samples share their prompt
            prompt = found.request.prompt_token_ids
            held += 4 * len(prompt)
        for scores in (found.prompt_scores, found.next_scores):
            if scores is not None:
                held += SCORES_BYTES + TOKEN_SCORE_BYTES * len(scores)
    return held


def _input_bytes(row: GenerateRow | ScoreRow) -> int:
    """Returns the bytes of a row's prompt, or of its context and continuations."""
    texts = [row.prompt] if isinstance(row, GenerateRow) else [row.context, *row.continuations]
    return sum(map(getsizeof, texts))


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


def _lists(values: pa.Array, lengths: Sequence[int]) -> pa.ListArray:
    """Returns consecutive values as lists of these lengths."""
    return pa.LargeListArray.from_arrays(pa.array(_offsets(lengths)), values).cast(pa.list_(values.type))


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    """Returns [n + 1] int64: the start of each of n consecutive stretches, and the end of the last one."""
    return np.cumsum([0, *lengths], dtype=np.int64)


def _joined(arrays: Iterable[np.ndarray], dtype: Any) -> np.ndarray:
    """Returns the arrays one after the other, converted to a type of the same kind."""
    found = list(arrays)
    return np.concatenate(found, dtype=dtype, casting="same_kind") if found else np.zeros(0, dtype)
