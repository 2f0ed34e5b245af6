"""Rows of text or token ids → requests: text becomes token ids here, and never later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np

from .engine.logprobs import TokenScores
from .engine.request import END_OF_TEXT, Completion, Constraint, Request
from .errors import RowError
from .rows import ErrorRow, GenerateRow, RowInFlight, ScoreRow
from .sampling_params import SamplingParams
from .text.chat import render_messages
from .text.constraint import ConstraintCompiler
from .text.stop_strings import StopStrings
from .text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from .rows import Prompt, TextOrIds

__all__ = ["ErrorRow", "GenerateRow", "RequestBuilder", "RowInFlight", "ScoreRow", "Scoring"]

Built = TypeVar("Built")
_stop_strings = lru_cache(maxsize=256)(StopStrings)


@dataclass(frozen=True, slots=True)
class Scoring:
    """How the completions of a row say what its continuations score.

    The context is read once: what follows it directly, the first token of every continuation, is scored from one
    hidden state. The rest of a longer continuation needs a request of its own, which starts where the context ends. A
    single continuation is one request. `sample` 0 is the context's request, 1 + i that of continuation i.

    Args:
        context: [T] int32 token ids, at least one.
        continuations: [T] int32 token ids each.
    """

    context: np.ndarray
    continuations: list[np.ndarray]

    def of_context(self, completions: Iterable[Completion]) -> TokenScores | None:
        """Scores of the context's tokens after the first; None where they were not asked for."""
        return next((found.prompt_scores for found in completions if found.request.sample == 0), None)

    def of_continuations(self, completions: Iterable[Completion]) -> list[TokenScores]:
        """Scores of each continuation's tokens."""
        return [TokenScores.join(parts) for parts in self.parts_of_continuations(completions)]

    def parts_of_continuations(self, completions: Iterable[Completion]) -> list[list[TokenScores]]:
        """The same in parts, as they were computed, in order."""
        found = {completion.request.sample: completion for completion in completions}
        shared = found[0].next_scores if 0 in found else None
        scores, firsts = [], 0
        for i, ids in enumerate(self.continuations):
            parts = []
            if len(ids) and shared is not None:
                parts.append(shared.part(slice(firsts, firsts + 1)))
                firsts += 1
            if 1 + i in found:
                own = found[1 + i]
                parts += [part for part in (own.prompt_scores, own.next_scores) if part is not None and len(part)]
            scores.append(parts)
        return scores


class _Setting(NamedTuple):
    """What a row's sampling parameters mean to its requests."""

    params: SamplingParams
    seed: int
    stop_strings: StopStrings | None
    new_constraint: Callable[[], Constraint] | None


class _Draft(NamedTuple):
    """A row whose texts are still to be encoded: a prompt, or a context with its continuations."""

    row: GenerateRow | ScoreRow
    parts: list[Any]
    setting: _Setting | None = None


class RequestBuilder:
    """Turns rows into requests for one model.

    Args:
        vocab_size: V; every token id must lie in [0, V).
        seed: of rows whose sampling parameters have none.
        constraints: compiles JSON schemas, regular expressions and grammars.
        max_prompt_tokens: a prompt, or a context, with more tokens is a bad row; None takes any.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        seed: int,
        constraints: ConstraintCompiler | None,
        max_prompt_tokens: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.seed = seed
        self._constraints = constraints
        self._max_prompt_tokens = max_prompt_tokens
        self._keys = count()
        self._last: _Setting | None = None

    def check(self, params: SamplingParams) -> None:
        """Raise RowError where no prompt could be sampled so. Constraints are compiled.

        Raises:
            MissingExtraError: they need a package that is missing.
        """
        self._setting(params)

    def build(self, rows: Sequence[GenerateRow | ScoreRow | ErrorRow]) -> list[RowInFlight | ErrorRow]:
        """The rows with their requests, in order. All texts are encoded in one call; a bad row becomes an error row."""
        drafts = [row if isinstance(row, ErrorRow) else _attempt(self._draft, row, row) for row in rows]
        texts = [part for draft in drafts if isinstance(draft, _Draft) for part in draft.parts if isinstance(part, str)]
        encoded = iter(self.tokenizer.encode_many(texts) if self.tokenizer and texts else ())
        built: list[RowInFlight | ErrorRow] = []
        for draft in drafts:
            if isinstance(draft, ErrorRow):
                built.append(draft)
            else:
                parts = [next(encoded) if isinstance(part, str) else part for part in draft.parts]
                built.append(_attempt(self._in_flight, draft.row, draft, parts))
        return built

    def _draft(self, row: GenerateRow | ScoreRow) -> _Draft:
        """What is to be encoded, checked as far as it can be before."""
        if isinstance(row, GenerateRow):
            return _Draft(row, [self._text_or_ids(_prompt(row.prompt), "prompt")], self._setting(row.params))
        context = self._text_or_ids(row.context, "context")
        if any(isinstance(continuation, str) != isinstance(context, str) for continuation in row.continuations):
            raise RowError("bad_type", "context and continuation must both be text or both be token ids")
        return _Draft(row, [context, *(self._text_or_ids(one, "continuation") for one in row.continuations)])

    def _in_flight(self, draft: _Draft, parts: Sequence[np.ndarray | RowError]) -> RowInFlight:
        """A row whose texts have become token ids, [T] int32 each, or the reasons why they cannot."""
        ids = []
        for part in parts:
            if isinstance(part, RowError):
                raise part
            ids.append(part)
        if self._max_prompt_tokens is not None and len(ids[0]) > self._max_prompt_tokens:
            limit = f"input.max_prompt_tokens ({self._max_prompt_tokens})"
            raise RowError("prompt_too_long", f"the prompt has {len(ids[0])} tokens, more than {limit}")
        if isinstance(draft.row, ScoreRow):
            return self._scored(draft.row, ids[0], ids[1:])
        assert draft.setting is not None
        prompt = draft.parts[0] if isinstance(draft.parts[0], str) else None
        return self._generated(draft.row, draft.setting, prompt, ids[0])

    def _generated(self, row: GenerateRow, setting: _Setting, prompt: str | None, ids: np.ndarray) -> RowInFlight:
        """One request for each sample; the first one scores the prompt, where that is asked for."""
        params, key = setting.params, next(self._keys)
        ids = ids if len(ids) else np.array([END_OF_TEXT], np.int32)
        start = None if params.prompt_logprobs is None else 1
        requests = [
            Request(
                key=key,
                prompt_token_ids=ids,
                params=params,
                seed=setting.seed,
                row=row.row,
                sample=sample,
                score_start=None if sample else start,
                stop_strings=setting.stop_strings,
                new_constraint=setting.new_constraint,
            )
            for sample in range(params.n)
        ]
        return RowInFlight(row, requests, prompt)

    def _scored(self, row: ScoreRow, context: np.ndarray, continuations: list[np.ndarray]) -> RowInFlight:
        """The requests that `Scoring` describes; none where there is nothing to score."""
        if not len(context) or (row.add_bos_token and context[0] != END_OF_TEXT):
            context = np.concatenate(([END_OF_TEXT], context), dtype=np.int32)
        key = next(self._keys)
        top = row.top_logprobs
        firsts = tuple(int(ids[0]) for ids in continuations if len(ids))
        is_single = row.prompt_logprobs is None and len(firsts) == 1
        start = len(context) + (not is_single)
        params = _score_params(top, top)
        requests = []
        for i, ids in enumerate(continuations):
            if len(ids) > 1 or (len(ids) and is_single):
                prompt, last = np.concatenate((context, ids[:-1])), (int(ids[-1]),)
                requests.append(Request(key, prompt, params, 0, row.row, 1 + i, score_start=start, next_token_ids=last))
        if not is_single and (firsts or row.prompt_logprobs is not None):
            params = _score_params(top, row.prompt_logprobs)
            start_of_context = None if row.prompt_logprobs is None else 1
            requests.append(
                Request(key, context, params, row=row.row, score_start=start_of_context, next_token_ids=firsts)
            )
        return RowInFlight(row, requests, scoring=Scoring(context, continuations))

    def _text_or_ids(self, value: object, name: str) -> str | np.ndarray:
        """Text that can be encoded, or [T] int32 ids, each in [0, V)."""
        if isinstance(value, str):
            if self.tokenizer is None:
                raise RowError("no_tokenizer", f"the {name} is text, but this model was loaded with tokenizer=None")
            return value
        value = _integers(value, name)
        is_wrong = (value < 0) | (value >= self.vocab_size)
        if is_wrong.any():
            found = value[is_wrong.argmax()]
            raise RowError("token_out_of_range", f"the {name} holds id {found}, expected 0 to {self.vocab_size - 1}")
        return value.astype(np.int32)

    def _setting(self, params: SamplingParams) -> _Setting:
        """Checked parameters; those of the row before are remembered, as rows often share theirs."""
        if self._last is not None and self._last.params is params:
            return self._last
        self._check_params(params)
        strings = params.stop_strings
        setting = _Setting(
            params,
            seed=self.seed if params.seed is None else params.seed,
            stop_strings=_stop_strings(strings, params.include_stop_str_in_output, params.min_tokens)
            if strings
            else None,
            new_constraint=self._constraint(params),
        )
        self._last = setting
        return setting

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


def _attempt(make: Callable[..., Built], row: GenerateRow | ScoreRow, *given: Any) -> Built | ErrorRow:
    """What `make` makes; an error row where it finds the row bad."""
    try:
        return make(*given)
    except RowError as error:
        # Parts have always said 0 of a row that its settings spoil, and nothing of one that is too long.
        return ErrorRow.of(row, error, None if error.code == "prompt_too_long" else 0)


def _prompt(prompt: Prompt) -> TextOrIds:
    """The text or the ids of a prompt in any of its forms."""
    if not isinstance(prompt, Mapping):
        return prompt
    for key in ("prompt_token_ids", "prompt"):
        if key in prompt:
            return cast("TextOrIds", prompt[key])
    if "messages" in prompt:
        return render_messages(prompt["messages"])
    raise RowError("bad_type", f"the prompt has keys {sorted(prompt)}, expected prompt, prompt_token_ids or messages")


def _integers(value: object, name: str) -> np.ndarray:
    """[T] integers; where they are beyond 64 bits, Python's own in an array of objects."""
    if isinstance(value, np.ndarray):
        if value.ndim != 1 or value.dtype.kind not in "iu":
            raise RowError("bad_type", f"the {name} is an array {value.shape} of {value.dtype}, expected [T] integers")
        return value
    if isinstance(value, (bytes, bytearray)) or not isinstance(value, Sequence):
        raise RowError("bad_type", f"the {name} is {type(value).__name__}, expected text or a list of token ids")
    wrong = [item for item in value if type(item) is not int and (isinstance(item, bool) or not isinstance(item, int))]
    if wrong:
        raise RowError("bad_type", f"the {name} holds {wrong[0]!r}, expected token ids (integers)")
    try:
        return np.array(value, np.int64)
    except OverflowError:
        return np.array(value, object)


@lru_cache(maxsize=256)
def _score_params(logprobs: int | None, prompt_logprobs: int | None) -> SamplingParams:
    return SamplingParams(max_tokens=0, logprobs=logprobs, prompt_logprobs=prompt_logprobs)
