"""The embedded API: text in, text out. Names and shapes follow vLLM's offline API."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from .constraint import ConstraintCompiler
from .engine.engine import Engine
from .engine.logprobs import Logprobs
from .engine.request import END_OF_TEXT, Completion, Request
from .engine.slot_tables import Vocabulary
from .engine.stats import EngineStats
from .errors import ConfigurationError, RowError
from .model_summary import ModelSummary, inspect_model
from .models.model import Model
from .models.placement import describe_layers
from .ops import fallbacks, format_choices
from .outputs import CompletionOutput, Logprob, RequestOutput, ScoreOutput
from .prefetch import Prefetch
from .requests import GenerateRow, Prompt, RequestBuilder, ScorePlan, ScoreRow
from .sampling_params import SamplingParams
from .stop_strings import StopMatcher
from .threads import limit_threads
from .tokenizer import Tokenizer

__all__ = ["LLM", "GenerateRow", "ModelSummary", "ScoreRow", "inspect_model"]

UNCOUNTED = b" \t0123456789"
"""Tokens that are a part of this text are not counted by ChatRWKV's penalties."""

logger = logging.getLogger(__name__)


class LLM:
    """One loaded model and the engine that runs it.

    Args:
        model: "demo", a .pth or .safetensors file, a folder in Hugging Face layout, or hf://owner/repo/file@revision.
        tokenizer: "auto", "world", "bytes", a vocabulary file, a tokenizer.json, or None for token ids only.
        device: "auto", "cpu", "cuda", "cuda:N", "mps", "dml".
        dtype: "auto" (the checkpoint's), "float32", "bfloat16", "float16".
        quantization: None, "int8" for 8-bit matrices, or "w8a8" for 8-bit matrices and inputs: faster, and coarser.
        backend: "auto", "triton", "cuda", "cpu", "reference".
        max_batch_size: sequences that run at the same time; None takes what is useful and fits.
        max_batch_tokens: tokens of one step; None likewise.
        state_dtype: "float32", or "float16" (v5 to v7): half the memory and traffic of a state, rounded stochastically
            after every token.
        init_state: a file of tuned initial states; None starts from the checkpoint's own.
        strategy: ChatRWKV's strategy string, instead of device, dtype and quantization: for each layer its own.
        prefix_sharing: compute prompt prefixes that several prompts share once.
        batch_invariant: results do not depend, bit for bit, on what else is in the batch.
        ln_x_eps: epsilon of the group norm over heads; None takes the checkpoint's, or 64e-5.
        seed: of the random streams of requests that have none of their own.
        prefix_host_gib: host memory, in GiB, for states of shared prefixes when more are needed at a time than there
            are slots. Without a place for its state a prefix is computed for each prompt again.

    Raises:
        ConfigurationError: a setting is wrong.
        CheckpointError: the model file cannot be used.
        CapacityError: the device is missing or too small.
        BackendError: the backend that was named cannot serve this model.
    """

    def __init__(
        self,
        model: str | Path = "demo",
        tokenizer: str | None = "auto",
        device: str = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        backend: str = "auto",
        max_batch_size: int | None = None,
        max_batch_tokens: int | None = None,
        state_dtype: str = "float32",
        init_state: str | Path | None = None,
        strategy: str | None = None,
        prefix_sharing: bool = True,
        batch_invariant: bool = False,
        ln_x_eps: float | None = None,
        seed: int = 0,
        prefix_host_gib: float = 1.0,
    ) -> None:
        if not 0 <= prefix_host_gib < math.inf:
            raise ConfigurationError(
                f"engine.prefix_host_gib: got {prefix_host_gib!r}, expected a number of GiB from 0"
            )
        self.summary = inspect_model(
            model,
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
            quantization=quantization,
            backend=backend,
            max_batch_size=max_batch_size,
            max_batch_tokens=max_batch_tokens,
            state_dtype=state_dtype,
            init_state=init_state,
            strategy=strategy,
            ln_x_eps=ln_x_eps,
        )
        file, plan = self.summary.file, self.summary.memory
        places = self.summary.placement.of_layers(file.sizes["L"])
        if any(place.device.type == "cpu" for place in places):
            limit_threads()
        logger.info("%s", plan)
        self.tokenizer: Tokenizer | None = self.summary.tokenizer
        self.seed = seed
        self._model = Model(file, self.summary.placement, self.summary.layer_ops, ln_x_eps, batch_invariant)
        vocab_size = file.sizes["V"]
        self._engine = Engine(
            self._model,
            _vocabulary(self.tokenizer, vocab_size),
            max_batch_size=plan.max_batch_size,
            max_batch_tokens=plan.max_batch_tokens,
            init_state=init_state,
            prefix_sharing=prefix_sharing,
            prefix_host_bytes=int(prefix_host_gib * 2**30),
            new_stop_matcher=partial(StopMatcher, self.tokenizer.token_bytes) if self.tokenizer else None,
        )
        if self.summary.placement.layers:
            logger.info("%s", describe_layers(self.summary.placement, file.sizes["L"]))
        for where, table in self.summary.tables.items():
            logger.info("%s\n%s", where, format_choices(table.choices))
            for sentence in fallbacks(table.choices):
                logger.warning("%s: %s", where, sentence)
        constraints = ConstraintCompiler(self.tokenizer.token_bytes, vocab_size) if self.tokenizer else None
        self._builder = RequestBuilder(self.tokenizer, vocab_size, seed, constraints)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt; results are in the order of the prompts.

        Args:
            prompts: a list of prompts: text, token ids, {"prompt_token_ids": [...]} or {"messages": [...]}. One text or
                mapping stands for a list of one.
            sampling_params: for all prompts, or one for each.

        Raises:
            ValueError: a prompt cannot be served; the message names it.
        """
        if isinstance(prompts, (str, dict)):
            prompts = [prompts]
        prompt_list: list[Any] = list(prompts)
        if isinstance(sampling_params, Sequence) and len(sampling_params) != len(prompt_list):
            raise ValueError(
                f"got {len(sampling_params)} sampling_params for {len(prompt_list)} prompts, expected as many"
            )
        outputs: dict[int, RequestOutput] = {}
        for index, output in self.generate_iter(prompt_list, sampling_params):
            if output.error is not None:
                raise ValueError(f"prompt {index}: {output.error}")
            outputs[index] = output
        return [outputs[index] for index in range(len(prompt_list))]

    def generate_iter(
        self, prompts: Iterable[Prompt], sampling_params: SamplingParams | Iterable[SamplingParams] | None = None
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Complete any number of prompts in bounded memory: (index, result) in the order in which they finish.

        A prompt that cannot be served gives a result with `error_code` and `error`.
        """
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            shared = sampling_params or SamplingParams()
            rows = (GenerateRow(i, i, prompt, shared) for i, prompt in enumerate(prompts))
        else:
            pairs = zip(prompts, sampling_params, strict=True)
            rows = (GenerateRow(i, i, prompt, params) for i, (prompt, params) in enumerate(pairs))
        return self.serve(rows)

    @overload
    def score(
        self,
        pairs: Iterable[tuple[str, str] | tuple[Sequence[int], Sequence[int]]],
        *,
        add_bos_token: bool = False,
        top_logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> list[ScoreOutput]: ...
    @overload
    def score(
        self,
        pairs: Iterable[tuple[str, list[str]] | tuple[Sequence[int], list[list[int]]]],
        *,
        add_bos_token: bool = False,
        top_logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> list[list[ScoreOutput]]: ...
    def score(
        self,
        pairs: Iterable[tuple[Any, Any]],
        *,
        add_bos_token: bool = False,
        top_logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> list[Any]:
        """The log-likelihood of each continuation given its context; results are in the order of the pairs.

        Args:
            pairs: (context, continuation), both text or both token ids; each is encoded by itself. An empty context
                is the beginning of a document, token 0. A list of continuations (of texts, or of lists of ids) in place
                of one shares its context, and gives a list of results in place of one.
            add_bos_token: put token 0 before every context that does not start with it.
            top_logprobs: also return this many most likely tokens at each of a continuation's positions, from 0; None
                is off.
            prompt_logprobs: the same for each token of the context after the first, and its own log-probability.

        Raises:
            ValueError: a pair or an option cannot be served; the message names it.
        """
        SamplingParams(logprobs=top_logprobs, prompt_logprobs=prompt_logprobs)  # refuses values out of range
        scores: dict[int, Any] = {}
        single: set[int] = set()

        def rows() -> Iterator[ScoreRow]:
            for i, (context, continuation) in enumerate(pairs):
                several = isinstance(continuation, (list, tuple)) and isinstance(
                    [*continuation, 0][0], (str, list, tuple)
                )
                if not several:
                    single.add(i)
                continuations = continuation if several else [continuation]
                yield ScoreRow(i, i, context, continuations, add_bos_token, top_logprobs, prompt_logprobs)

        for index, outputs in self.serve_scores(rows()):
            if outputs[0].error is not None:
                raise ValueError(f"pair {index}: {outputs[0].error}")
            scores[index] = outputs[0] if index in single else outputs
        return [scores[index] for index in sorted(scores)]

    def serve(self, rows: Iterable[GenerateRow]) -> Iterator[tuple[Any, RequestOutput]]:
        """Complete rows as they come: (key, result) in the order in which they finish.

        Rows are pulled and tokenised on a thread of their own, a bounded number ahead. A bad row gives a result with
        `error_code` and `error`; it never stops the others.
        """

        def build(row: GenerateRow, group: _Group) -> list[Request]:
            group.finish = self._request_output
            return self._builder.generate(row, group)

        return self._serve(rows, build, _failed_request)

    def serve_scores(self, rows: Iterable[ScoreRow]) -> Iterator[tuple[Any, list[ScoreOutput]]]:
        """Score rows as they come: (key, one result for each continuation) in the order in which they finish."""

        def build(row: ScoreRow, group: _Group) -> list[Request]:
            plan = self._builder.score(row, group)
            group.finish = partial(self._score_outputs, row, plan)
            return plan.requests

        return self._serve(rows, build, _failed_score)

    def stats(self) -> EngineStats:
        """Counters since the model was loaded."""
        return self._engine.stats

    def describe(self) -> dict[str, Any]:
        """What was loaded and how it runs, for reports."""
        return {**self.summary.describe(), "matrix_bytes": self._model.matrix_bytes}

    def check_integrity(self) -> None:
        """Assert that no slot has leaked."""
        self._engine.check_integrity()

    def _serve(
        self,
        rows: Iterable[Any],
        build: Callable[[Any, _Group], list[Request]],
        fail: Callable[[Any, RowError], Any],
    ) -> Iterator[tuple[Any, Any]]:
        failed: deque[tuple[Any, Any]] = deque()

        def requests() -> Iterator[list[Request]]:
            for row in rows:
                group = _Group(row)
                try:
                    built = build(row, group)
                    group.missing = len(built)
                except RowError as error:
                    failed.append((row.key, fail(row, error)))
                    yield []
                    continue
                if not built:
                    failed.append((row.key, _result(group, fail)))
                yield built

        ahead = Prefetch(requests(), ahead=self._engine.window)
        try:
            for finished in self._engine.run(ahead):
                while failed:
                    yield failed.popleft()
                for completion in finished:
                    group: _Group = completion.key
                    group.add(completion)
                    if not group.missing:
                        yield group.row.key, _result(group, fail)
            yield from failed
        finally:
            ahead.close()

    def _request_output(self, completions: list[Completion]) -> RequestOutput:
        first = completions[0]
        prompt = list(first.request.prompt_token_ids)
        prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        if first.request.score_start is not None:
            scored = zip(prompt[1:], first.prompt_scores or (), strict=True)
            prompt_logprobs = [None, *(self._logprob_dict(token_id, found) for token_id, found in scored)]
        outputs = [self._completion_output(i, completion) for i, completion in enumerate(completions)]
        row = first.request.key.row.prompt
        return RequestOutput(row if isinstance(row, str) else None, prompt, prompt_logprobs, outputs)

    def _score_outputs(self, row: ScoreRow, plan: ScorePlan, completions: list[Completion]) -> list[ScoreOutput]:
        of_context, of_continuations = plan.scores(completions)
        prompt_logprobs = None
        if row.prompt_logprobs is not None:
            prompt_logprobs = [None, *map(self._logprob_dict, plan.context[1:], of_context)]
        outputs = []
        for ids, scores in zip(plan.continuations, of_continuations, strict=True):
            token_logprobs = [score.logprob for score in scores]
            outputs.append(
                ScoreOutput(
                    logprob=math.fsum(token_logprobs),
                    is_greedy=all(score.is_greedy for score in scores),
                    token_logprobs=token_logprobs,
                    num_tokens=len(ids),
                    token_ids=ids,
                    top_logprobs=None if row.top_logprobs is None else list(map(self._logprob_dict, ids, scores)),
                    prompt_logprobs=prompt_logprobs,
                )
            )
        return outputs

    def _completion_output(self, index: int, completion: Completion) -> CompletionOutput:
        logprobs = None
        token_ids, token_logprobs = completion.token_ids.tolist(), completion.token_logprobs.tolist()
        if completion.logprobs is not None:
            found = zip(token_ids, completion.logprobs, strict=True)
            logprobs = [self._logprob_dict(token_id, entry) for token_id, entry in found]
        text = b""
        if self.tokenizer is not None:
            text = self.tokenizer.decode_bytes(token_ids[: completion.text_tokens])[: completion.text_bytes]
        return CompletionOutput(
            index=index,
            text=text.decode("utf-8", errors="replace"),
            token_ids=token_ids,
            cumulative_logprob=math.fsum(token_logprobs),
            logprobs=logprobs,
            finish_reason=completion.finish_reason,
            stop_reason=completion.stop_reason,
            token_logprobs=token_logprobs,
        )

    def _logprob_dict(self, token_id: int, found: Logprobs) -> dict[int, Logprob]:
        """The most likely tokens, most likely first, and the token itself."""
        top = zip(found.top_ids, found.top_logprobs, strict=True)
        entries = {i: (value, rank) for rank, (i, value) in enumerate(top, 1)}
        entries[token_id] = (found.logprob, found.rank)
        decode = self.tokenizer.decode if self.tokenizer else None
        return {i: Logprob(value, rank, decode([i]) if decode else None) for i, (value, rank) in entries.items()}


@dataclass(eq=False)
class _Group:
    """The requests of one row, on their way to one result."""

    row: Any
    missing: int = 0
    completions: list[Completion] = field(default_factory=list)
    finish: Callable[[list[Completion]], Any] | None = None
    """Makes the result."""
    result: Any = None
    """Set where the row could not be served."""

    def add(self, completion: Completion) -> None:
        """Take one finished request; the last one puts all in order."""
        self.completions.append(completion)
        self.missing -= 1
        if not self.missing:
            self.completions.sort(key=lambda c: c.request.sample)


def _result(group: _Group, fail: Callable[[Any, RowError], Any]) -> Any:
    """The row's result. The group lets go of its completions, which refer to it."""
    completions, group.completions = group.completions, []
    if any(map(_is_broken, completions)):
        reason = "the model's numbers are not finite; float16 may have overflowed: use bfloat16 or float32"
        return fail(group.row, RowError("not_finite", reason))
    if group.result is not None:
        return group.result
    assert group.finish is not None
    return group.finish(completions)


def _is_broken(completion: Completion) -> bool:
    """Something in it is not a number."""
    scores = [found.logprobs for found in (completion.prompt_scores, completion.next_scores) if found is not None]
    return completion.finish_reason == "error" or not all(np.isfinite(found).all() for found in scores)


def _failed_request(row: GenerateRow, error: RowError) -> RequestOutput:
    prompt = row.prompt if isinstance(row.prompt, str) else None
    return RequestOutput(prompt, [], None, [], error_code=error.code, error=error.message)


def _failed_score(row: ScoreRow, error: RowError) -> list[ScoreOutput]:
    failed = ScoreOutput(math.nan, False, [], 0, error_code=error.code, error=error.message)
    return [failed] * max(len(row.continuations), 1)


def _vocabulary(tokenizer: Tokenizer | None, vocab_size: int) -> Vocabulary:
    """Ids without bytes are never sampled; ChatRWKV's penalties do not count digits, spaces and tabs."""
    if tokenizer is None:
        return Vocabulary.plain(vocab_size)
    table = [tokenizer.token_bytes[i] if i < len(tokenizer.token_bytes) else None for i in range(vocab_size)]
    unsampleable = torch.tensor([not data and i != END_OF_TEXT for i, data in enumerate(table)])
    uncounted = torch.tensor([data is not None and data in UNCOUNTED for data in table])
    return Vocabulary(unsampleable, uncounted)
