"""A class for pipelines of Ray Data: `Dataset.map_batches(EngineUDF, ...)` serves the rows of batches.

The backend `ray` of jobs is something else: it needs no pipeline, and resumes after a kill.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa

from ..arguments import check_prefix, params_list
from ..errors import ConfigurationError, MissingExtraError, RowError
from ..llm import LLM
from ..rows import GenerateRow, ScoreRow, is_integer
from ..sampling_fields import plain
from ..sampling_params import SamplingParams
from .harness_requests import random_stream
from .model_arguments import adapter_arguments, check_arguments
from .ray_columns import (
    Record,
    cells,
    check_batch,
    checked_roles,
    completion_records,
    completion_schema,
    error_records,
    renamed,
    result_arrays,
    score_records,
    score_schema,
)
from .service import Service

try:
    from ray.data.block import BlockAccessor
except ImportError as error:
    raise MissingExtraError("EngineUDF", "ray", "ray") from error

logger = logging.getLogger(__name__)

MOST_ROW = 2**64 - 1
"""Limit of a row's number, which selects its random stream."""
SCORE_OPTIONS = ("add_bos_token", "prefix")


class EngineUDF:
    """Serves the rows of Ray Data's batches with one engine in each actor.

        dataset.map_batches(EngineUDF, fn_constructor_kwargs={"model": "model.pth"}, batch_size=64, num_gpus=1,
                            compute=ActorPoolStrategy(size=8, max_concurrent_calls_per_actor=4))

    Ray calls an actor for several batches at the same time: for four of one block, and for as many blocks as
    `max_concurrent_calls_per_actor` says. All of them share the engine. A batch is passed on when its last row is
    finished, with its own columns, in its order, and with the result columns of a job: `sample_index`, `completion`,
    `finish_reason`, `stop_reason`, `status`, `error_code`, `error`, `prompt_tokens`, `completion_tokens` and
    `cumulative_logprob`, one record for each sample. Of rows to score they are `logprob`, `is_greedy`, `num_tokens`,
    `status`, `error_code` and `error`.

    A row that cannot be served gets `status` "error" with `error_code` and `error`. If the engine fails, the process of
    the actor ends: Ray starts another actor, and runs the batches again.

    Args:
        model: the argument of `LLM` of the same name. The path is that on the node of the actor.
        columns: role → column. The role is one of "prompt" (text), "messages" and "prompt_token_ids", or the roles are
            "context" and "continuation", which are scored. None is {"prompt": "prompt"}.
        sampling: `SamplingParams`, or a mapping with its fields, for all prompts.
        score: options of `LLM.score` for all contexts: "add_bos_token" and "prefix".
        row_column: a column with a number for each row, from 0, which no other row has. It selects the row's random
            stream. Without it the stream follows from the prompt, so that equal prompts get equal completions. In both
            cases the actor and the batch of a row do not matter.
        output_columns: name of a result column → its name in the output.
        token_ids: add the column `token_ids` with the ids of each completion, or continuation.
        logprobs: add the column `token_logprobs` with their log-probabilities.
        llm_arguments: other arguments of `LLM`.

    Attributes:
        llm: the model, one in each actor.

    Raises:
        ConfigurationError: an argument is unknown or wrong.
        CheckpointError, CapacityError, BackendError: as `LLM` does.
    """

    def __init__(
        self,
        model: str | Path = "demo",
        *,
        columns: Mapping[str, str] | None = None,
        sampling: SamplingParams | Mapping[str, Any] | None = None,
        score: Mapping[str, Any] | None = None,
        row_column: str | None = None,
        output_columns: Mapping[str, str] | None = None,
        token_ids: bool = False,
        logprobs: bool = False,
        **llm_arguments: Any,
    ) -> None:
        check_arguments(llm_arguments, option="EngineUDF", own=adapter_arguments(EngineUDF))
        self._roles = checked_roles(columns)
        self._is_score = "context" in self._roles
        self._row_column = None if self._is_score else row_column
        self._score = _score_options(score or {}, self._is_score)
        if self._is_score and sampling is not None:
            raise ConfigurationError("expected none beside a column to score", setting="sampling")
        (self._params,) = params_list(sampling, 1)
        self._results = (score_schema if self._is_score else completion_schema)(token_ids, logprobs)
        self._named = renamed(self._results, output_columns or {})
        self.llm = LLM(model, **llm_arguments)
        serve = self.llm.serve_scores if self._is_score else self.llm.serve
        self._service: Service[Any, Any] = Service(serve, self.llm.abort, "rwkv_batch-ray")

    async def __call__(self, batch: Any) -> AsyncIterator[pa.Table]:
        """Serves a batch, and yields it with the result columns.

        Args:
            batch: in any of Ray's formats: a table of Arrow, a frame of pandas, or a mapping of arrays.

        Raises:
            ConfigurationError: a column is missing, or has the name of a result.
        """
        table = BlockAccessor.for_block(BlockAccessor.batch_to_block(batch)).to_arrow()
        if table.num_rows:
            numbered = [] if self._row_column is None else [self._row_column]
            check_batch(table, [*self._roles.values(), *numbered], self._named)
        found = await self._served(self._rows(table) if table.num_rows else [])
        indices = [index for index, records in enumerate(found) for _ in records]
        if len(indices) != len(found):  # several samples of a row
            table = BlockAccessor.for_block(table).take(indices)
        arrays = result_arrays([record for records in found for record in records], self._results)
        for name, array in zip(self._named.names, arrays, strict=True):
            table = table.append_column(name, array)
        yield table

    async def _served(self, rows: list[GenerateRow | ScoreRow | RowError]) -> list[list[Record]]:
        """Serves rows; returns the records of each."""
        records = score_records if self._is_score else completion_records
        try:
            futures = [self._service.submit(row) for row in rows if not isinstance(row, RowError)]
            outputs = iter(await asyncio.gather(*map(asyncio.wrap_future, futures)))
        except Exception:
            end_process()
        return [
            error_records(row.code, row.message, not self._is_score)
            if isinstance(row, RowError)
            else records(next(outputs))
            for row in rows
        ]

    def _rows(self, table: pa.Table) -> list[GenerateRow | ScoreRow | RowError]:
        """Returns the rows of a batch, or what is wrong with them."""
        values = zip(*(cells(table[name]) for name in self._roles.values()), strict=True)
        if self._row_column is None:
            return [self._row(given, None) for given in values]
        numbers = cells(table[self._row_column])
        return [self._row(given, _row_number(number)) for given, number in zip(values, numbers, strict=True)]

    def _row(self, values: tuple[Any, ...], number: int | RowError | None) -> GenerateRow | ScoreRow | RowError:
        for name, value in zip(self._roles.values(), values, strict=True):
            if value is None:
                return RowError("null_prompt", f"the column {name!r} is null")
            if isinstance(value, RowError):
                return RowError(value.code, f"the column {name!r}: {value.message}")
        if isinstance(number, RowError):
            return number
        if self._is_score:
            given = dict(zip(self._roles, values, strict=True))
            return ScoreRow(None, 0, given["context"], [given["continuation"]], **self._score)
        (prompt,) = values
        if number is None:
            number = random_stream(prompt if isinstance(prompt, str) else json.dumps(plain(prompt), default=str), 0)
        return GenerateRow(None, number, {"messages": prompt} if "messages" in self._roles else prompt, self._params)


def _score_options(options: Mapping[str, Any], is_score: bool) -> dict[str, Any]:
    """Returns the options of rows to score. Raises ConfigurationError where one is unknown, or nothing is scored."""
    if options and not is_score:
        raise ConfigurationError("expected none without the columns context and continuation", setting="score")
    if unknown := [name for name in options if name not in SCORE_OPTIONS]:
        raise ConfigurationError(f"got {unknown[0]!r}, expected {' and '.join(SCORE_OPTIONS)}", setting="score")
    check_prefix(options.get("prefix"), has_tokenizer=True)
    return dict(options)


def _row_number(value: Any) -> int | RowError:
    if is_integer(value) and 0 <= value <= MOST_ROW:
        return int(value)
    return RowError("bad_type", f"the row's number is {value!r}, expected an integer from 0 to {MOST_ROW}")


def end_process() -> NoReturn:
    """Ends the process of this actor, because its engine has failed. Ray starts the actor again, and its batches."""
    logger.critical("the engine has failed; the process of this actor ends", exc_info=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
