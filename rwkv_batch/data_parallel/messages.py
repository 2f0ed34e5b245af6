"""The messages between an `LLM` and the processes of its engines. Each is pickled by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, NamedTuple

from ..engine.stats import EngineStats
from ..rows import GenerateRow, ScoreRow
from ..sampling_params import SamplingParams
from ..settings import EngineSettings, ModelSettings

Row = GenerateRow | ScoreRow


class Start(NamedTuple):
    """The first message to a process: load this model.

    Args:
        cuda_index: the current CUDA device of the process; None on a CPU.
        num_processes: how many processes divide the cores.
    """

    model: ModelSettings
    engine: EngineSettings
    max_prompt_tokens: int | None
    cuda_index: int | None
    num_processes: int


class Rows(NamedTuple):
    """Serve these rows.

    Args:
        call: number of the call that they belong to.
        kind: `GenerateRow` or `ScoreRow`.
        rows: the values of each row's fields in their order. The key is the row's number, which no other row has. None
            in place of sampling parameters stands for those of the row before, which may be of an earlier message.
    """

    call: int
    kind: type[Row]
    rows: list[tuple[Any, ...]]


class CloseInput(NamedTuple):
    """A call has no further rows."""

    call: int


class Abort(NamedTuple):
    """End the rows with these numbers, with the tokens that they have."""

    numbers: list[int]


class End(NamedTuple):
    """End all calls, without results."""


class Ask(NamedTuple):
    """Answer a question: "stats" or "check_integrity"."""

    number: int
    question: str


class Ready(NamedTuple):
    """The model is loaded.

    Args:
        matrix_bytes: see `Model`.
    """

    max_batch_size: int
    matrix_bytes: int


class Failed(NamedTuple):
    """The model cannot be loaded, or the call of this number cannot be served; the error is the caller's."""

    error: Exception
    call: int | None = None


class Crashed(NamedTuple):
    """The engine has failed, and the process ends: the error in words."""

    reason: str


class Results(NamedTuple):
    """(number of the row, its output or outputs) of finished rows."""

    results: list[tuple[int, Any]]


class Answer(NamedTuple):
    """The answer to the question of this number: the counters, and what is wrong with the slots, if anything."""

    number: int
    stats: EngineStats | None
    error: str | None


class Ended(NamedTuple):
    """Not sent: the process has ended."""


_GENERATE = attrgetter("row", "prompt")
_SCORE = attrgetter(*(field.name for field in fields(ScoreRow) if field.name != "key"))


def packed_rows(
    numbers: Sequence[int], rows: Sequence[Row], last: SamplingParams | None
) -> tuple[list[tuple[Any, ...]], SamplingParams | None]:
    """The `rows` of a message, and the sampling parameters of the last row.

    Args:
        last: those of the last row of the message before.
    """
    if isinstance(rows[0], ScoreRow):
        return [(number, *_SCORE(row)) for number, row in zip(numbers, rows, strict=True)], last
    packed = []
    for number, row in zip(numbers, rows, strict=True):
        assert isinstance(row, GenerateRow)
        packed.append((number, *_GENERATE(row), None if row.params is last else row.params))
        last = row.params
    return packed, last


def unpacked_rows(message: Rows, last: SamplingParams | None) -> tuple[list[Row], SamplingParams | None]:
    """The rows of a message, and the sampling parameters of the last one. `last` is as in `packed_rows`."""
    if message.kind is ScoreRow:
        return [ScoreRow(*values) for values in message.rows], last
    rows: list[Row] = []
    for number, row, prompt, params in message.rows:
        last = params or last
        assert last is not None
        rows.append(GenerateRow(number, row, prompt, last))
    return rows, last
