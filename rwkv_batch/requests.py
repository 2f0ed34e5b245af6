"""Rows of text or token ids → requests: text becomes token ids here, and never later."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .chat import render_messages
from .constraint import ConstraintCompiler
from .engine.logprobs import Logprobs
from .engine.request import END_OF_TEXT, Completion, Request
from .errors import RowError
from .sampling_params import SamplingParams
from .stop_strings import StopStrings
from .tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]
TextOrIds = str | Sequence[int]


@dataclass(frozen=True)
class GenerateRow:
    """One prompt to complete.

    Args:
        key: comes back with the result.
        row: keys the random stream; the same row gives the same tokens wherever it runs.
        prompt: text, token ids, {"prompt_token_ids": [...]}, {"prompt": text} or {"messages": [{"role", "content"}]};
            an empty one is the beginning of a document, token 0.
    """

    key: Hashable
    row: int
    prompt: Prompt
    params: SamplingParams


@dataclass(frozen=True)
class ScoreRow:
    """Continuations of one context whose log-likelihoods are wanted; all text, or all token ids.

    Args:
        key: comes back with the result.
        context: an empty one is the beginning of a document, token 0.
        add_bos_token: put token 0 before a context that does not start with it.
        top_logprobs: also return this many most likely tokens at each of the continuations' positions; None is off.
        prompt_logprobs: the same for each token of the context after the first, and its own log-probability.
    """

    key: Hashable
    row: int
    context: TextOrIds
    continuations: Sequence[TextOrIds]
    add_bos_token: bool = False
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True)
class ScorePlan:
    """How one context's continuations are scored.

    The context is read once: what follows it directly, the first token of every continuation, is scored from one
    hidden state. The rest of a longer continuation needs a request of its own, which starts where the context ends. A
    single continuation is one request.

    Args:
        requests: `sample` 0 is the context's, 1 + i that of continuation i; none where there is nothing to score.
        context: token ids, at least one.
        continuations: token ids.
    """

    requests: list[Request]
    context: list[int]
    continuations: list[list[int]]

    def scores(self, completions: Iterable[Completion]) -> tuple[list[Logprobs], list[list[Logprobs]]]:
        """What the requests found: for the context's tokens where asked for, and for each continuation's tokens."""
        of = {completion.request.sample: completion for completion in completions}
        shared = of.get(0)
        firsts = iter(shared.next_scores or ()) if shared is not None else iter(())
        scores = []
        for i, ids in enumerate(self.continuations):
            first = [next(firsts)] if ids and shared is not None and shared.next_scores is not None else []
            own = of.get(1 + i)
            scores.append(first + (list(own.prompt_scores or ()) + list(own.next_scores or ()) if own else []))
        return list(shared.prompt_scores or ()) if shared is not None else [], scores


class RequestBuilder:
    """Turns rows into requests for one model.

    Args:
        vocab_size: V; every token id must lie in [0, V).
        seed: of rows whose sampling parameters have none.
        constraints: compiles JSON schemas, regular expressions and grammars.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, vocab_size: int, seed: int, constraints: ConstraintCompiler | None
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.seed = seed
        self._constraints = constraints

    def check(self, params: SamplingParams) -> None:
        """Raise RowError where no prompt could be sampled so. Constraints are compiled.

        Raises:
            MissingExtraError: they need a package that is missing.
        """
        self._check_params(params)
        self._constraint(params)

    def generate(self, row: GenerateRow, key: Any) -> list[Request]:
        """One request for each sample; raises RowError for a bad row."""
        params = row.params
        self._check_params(params)
        text = self._text(row.prompt)
        scored = params.prompt_logprobs is not None
        request = Request(
            key=key,
            prompt_token_ids=self.token_ids(text, "prompt") or [END_OF_TEXT],
            params=params,
            seed=self.seed if params.seed is None else params.seed,
            row=row.row,
            score_start=1 if scored else None,
            stop_strings=StopStrings(params.stop_strings, params.include_stop_str_in_output, params.min_tokens)
            if params.stop_strings
            else None,
            new_constraint=self._constraint(params),
        )
        return [request, *(replace(request, sample=i, score_start=None) for i in range(1, params.n))]

    def score(self, row: ScoreRow, key: Any) -> ScorePlan:
        """The requests that score a row; raises RowError for a bad row."""
        context = self.token_ids(row.context, "context")
        if not context or (row.add_bos_token and context[0] != END_OF_TEXT):
            context = [END_OF_TEXT, *context]
        if any(isinstance(continuation, str) != isinstance(row.context, str) for continuation in row.continuations):
            raise RowError("bad_type", "context and continuation must both be text or both be token ids")
        continuations = [self.token_ids(continuation, "continuation") for continuation in row.continuations]
        top = row.top_logprobs
        firsts = tuple(ids[0] for ids in continuations if ids)
        is_single = row.prompt_logprobs is None and len(firsts) == 1
        start = len(context) + (not is_single)
        params = SamplingParams(max_tokens=0, logprobs=top, prompt_logprobs=top)
        requests = []
        for i, ids in enumerate(continuations):
            if len(ids) > 1 or (ids and is_single):
                prompt, last = context + ids[:-1], (ids[-1],)
                requests.append(Request(key, prompt, params, 0, row.row, 1 + i, start, next_token_ids=last))
        if not is_single and (firsts or row.prompt_logprobs is not None):
            params = replace(params, prompt_logprobs=row.prompt_logprobs)
            start_of_context = None if row.prompt_logprobs is None else 1
            requests.append(
                Request(key, context, params, row=row.row, score_start=start_of_context, next_token_ids=firsts)
            )
        return ScorePlan(requests, context, continuations)

    def token_ids(self, value: object, name: str) -> list[int]:
        """Text or ids → ids, each in [0, V)."""
        if isinstance(value, str):
            if self.tokenizer is None:
                raise RowError("no_tokenizer", f"the {name} is text, but this model was loaded with tokenizer=None")
            return self.tokenizer.encode(value)
        if isinstance(value, (bytes, bytearray)) or not isinstance(value, Sequence):
            raise RowError("bad_type", f"the {name} is {type(value).__name__}, expected text or a list of token ids")
        ids = list(value)
        for token_id in ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int):
                raise RowError("bad_type", f"the {name} holds {token_id!r}, expected token ids (integers)")
            if not 0 <= token_id < self.vocab_size:
                raise RowError(
                    "token_out_of_range", f"the {name} holds id {token_id}, expected 0 to {self.vocab_size - 1}"
                )
        return ids

    @staticmethod
    def _text(prompt: Prompt) -> TextOrIds:
        if not isinstance(prompt, Mapping):
            return prompt
        for key in ("prompt_token_ids", "prompt"):
            if key in prompt:
                return prompt[key]
        if "messages" in prompt:
            return render_messages(prompt["messages"])
        raise RowError(
            "bad_type", f"the prompt has keys {sorted(prompt)}, expected prompt, prompt_token_ids or messages"
        )

    def _check_params(self, params: SamplingParams) -> None:
        for name in ("stop_token_ids", "allowed_token_ids", "bad_token_ids", "logit_bias"):
            beyond = [i for i in getattr(params, name) or () if i >= self.vocab_size]
            if beyond:
                raise RowError("bad_sampling", f"{name} holds id {beyond[0]}, expected ids below {self.vocab_size}")
        if params.stop_strings and self.tokenizer is None:
            raise RowError("no_tokenizer", "stop strings need a tokenizer; pass stop_token_ids, or load one")

    def _constraint(self, params: SamplingParams) -> Any:
        if params.json_schema is None and params.regex is None and params.grammar is None:
            return None
        if self._constraints is None:
            raise RowError("no_tokenizer", "json_schema, regex and grammar need a tokenizer")
        compile_one = partial(self._constraints.compile, params.json_schema, params.regex, params.grammar)
        try:
            compile_one()
        except ValueError as error:
            raise RowError("bad_sampling", str(error)) from error
        return compile_one
