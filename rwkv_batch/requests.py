"""The request builder: turns rows into requests. This is the only place where text becomes token ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, lru_cache, partial
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np

from .engine.permitted import permitted_ids, reason_of_nothing
from .engine.request import END_OF_TEXT, Request
from .errors import RowError
from .rows import ErrorRow, GenerateRow, RowInFlight, ScoreRow, id_array, is_integer
from .sampling_fields import plain
from .sampling_params import CONSTRAINTS, SamplingParams, sampling_error
from .score_requests import Scoring, score_requests
from .text.bad_words import bad_word_ids
from .text.chat import FALLBACK, ChatFormat, ChatSettings, Conversation, open_chat
from .text.constraint_compiler import ConstraintCompiler, RowConstraint
from .text.messages import as_lists
from .text.rendered import Joined, Rendered
from .text.stop_strings import StopStrings
from .text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from .rows import Prompt, TextOrIds

__all__ = ["ErrorRow", "GenerateRow", "RequestBuilder", "RowInFlight", "ScoreRow", "Scoring"]

Built = TypeVar("Built")
_stop_strings = lru_cache(maxsize=256)(StopStrings)


class _RequestSettings(NamedTuple):
    """The settings of a row's requests that follow from its sampling parameters."""

    params: SamplingParams
    seed: int
    stop_strings: StopStrings | None
    new_constraint: Callable[[], RowConstraint] | None
    """Starts to compile the constraint, unless it is known, and makes that of one row."""


class _Latest(NamedTuple):
    """The latest sampling parameters with what follows from them. Their fields may have been set since."""

    given: SamplingParams
    copy: SamplingParams
    """Made when they were checked."""
    settings: _RequestSettings


class _Draft(NamedTuple):
    """A checked row whose texts are not encoded yet."""

    row: GenerateRow | ScoreRow
    inputs: list[Any]
    """Texts or token ids: the prompt, or the context, its continuations and, where there is one, its prefix."""
    settings: _RequestSettings | None = None
    """None for a row to score."""


class RequestBuilder:
    """Turns rows into requests for one model.

    Args:
        vocab_size: V; every token id must lie in [0, V).
        seed: the seed of rows whose sampling parameters have none.
        constraints: compiles JSON schemas, regular expressions and grammars.
        max_prompt_tokens: a row whose prompt, or context, has more tokens becomes an error row; None is no limit.
        chat_format: gives the format for the messages of rows that bring none of their own; called when one is needed.
            None is the format `rwkv`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        seed: int,
        constraints: ConstraintCompiler | None,
        max_prompt_tokens: int | None = None,
        chat_format: Callable[[], ChatFormat] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.seed = seed
        self._constraints = constraints
        self._max_prompt_tokens = max_prompt_tokens
        self._chat_format = chat_format or cache(partial(open_chat, ChatSettings(FALLBACK), None))
        self._keys = count()
        self._last: _Latest | None = None
        self._joined = Joined()

    def check(self, params: SamplingParams) -> None:
        """Checks sampling parameters, independent of a prompt. Waits until constraints are compiled.

        Raises:
            RowError: a value is wrong for this model.
            MissingExtraError: a constraint needs a package that is missing.
        """
        settings = self._settings(params)
        if settings.new_constraint is not None:
            constraint = settings.new_constraint()
            constraint.compiled.exception()
            if error := constraint.error():
                raise error

    def build(self, rows: Sequence[GenerateRow | ScoreRow | ErrorRow]) -> list[RowInFlight | ErrorRow]:
        """Makes the requests of each row, in order. One call encodes all texts. A bad row becomes an error row.

        The constraints of the rows may still be compiling.
        """
        rows = self._rendered(rows)
        known: dict[int, _RequestSettings] = {}
        drafts = [row if isinstance(row, ErrorRow) else _attempt(self._draft, row, row, known) for row in rows]
        texts = [one for draft in drafts if isinstance(draft, _Draft) for one in draft.inputs if isinstance(one, str)]
        encoded = iter(self.tokenizer.encode_many(texts) if self.tokenizer and texts else ())
        built: list[RowInFlight | ErrorRow] = []
        for draft in drafts:
            if isinstance(draft, ErrorRow):
                built.append(draft)
            else:
                ids = [next(encoded) if isinstance(one, str) else one for one in draft.inputs]
                built.append(_attempt(self._row_in_flight, draft.row, draft, ids))
        return built

    def _rendered(
        self, rows: Sequence[GenerateRow | ScoreRow | ErrorRow]
    ) -> Sequence[GenerateRow | ScoreRow | ErrorRow]:
        """The rows with a text in place of each conversation. Rows of one chat format are rendered in one call."""
        found: defaultdict[ChatFormat, list[tuple[int, Conversation]]] = defaultdict(list)
        for index, row in enumerate(rows):
            if chat := _conversation(row, self._chat_format):
                found[chat[0]].append((index, chat[1]))
        if not found:
            return rows
        changed = list(rows)
        for chat_format, conversations in found.items():
            prompts = chat_format.render_many([conversation for _, conversation in conversations])
            for (index, _), prompt in zip(conversations, prompts, strict=True):
                changed[index] = self._with_prompt(cast("GenerateRow", rows[index]), prompt)
        return changed

    def _with_prompt(self, row: GenerateRow, prompt: Rendered | RowError) -> GenerateRow | ErrorRow:
        joined = self._joined(prompt, row.params)
        return ErrorRow.of(row, joined, 0) if isinstance(joined, RowError) else GenerateRow(row.key, row.row, *joined)

    def _draft(self, row: GenerateRow | ScoreRow, known: dict[int, _RequestSettings]) -> _Draft:
        """Checks a row as far as that is possible before its texts are encoded.

        Args:
            known: the settings of the rows of this call, by the identity of their sampling parameters.
        """
        if isinstance(row, GenerateRow):
            prompt = self._text_or_ids(_prompt(row.prompt), "prompt")
            settings = known.get(id(row.params))
            if settings is None:
                settings = known[id(row.params)] = self._settings(row.params)
            return _Draft(row, [prompt], settings)
        context = self._text_or_ids(row.context, "context")
        if any(isinstance(continuation, str) != isinstance(context, str) for continuation in row.continuations):
            raise RowError("bad_type", "context and continuation must both be text or both be token ids")
        inputs = [context, *(self._text_or_ids(one, "continuation") for one in row.continuations)]
        return _Draft(row, inputs if row.prefix is None else [*inputs, self._text_or_ids(row.prefix, "prefix")])

    def _row_in_flight(self, draft: _Draft, encoded: Sequence[np.ndarray | RowError]) -> RowInFlight:
        """Makes the requests of a row from its token ids, [T] int32 each, or from errors of texts that have none."""
        ids = []
        for found in encoded:
            if isinstance(found, RowError):
                raise found
            ids.append(found)
        if (
            draft.settings is not None
            and (kept := draft.settings.params.truncate_prompt_tokens) is not None
            and kept >= 0
        ):
            ids[0] = ids[0][len(ids[0]) - min(kept, len(ids[0])) :]
        if self._max_prompt_tokens is not None and len(ids[0]) > self._max_prompt_tokens:
            limit = f"input.max_prompt_tokens ({self._max_prompt_tokens})"
            raise RowError("prompt_too_long", f"the prompt has {len(ids[0])} tokens, more than {limit}")
        if isinstance(draft.row, ScoreRow):
            return score_requests(draft.row, ids, next(self._keys))
        assert draft.settings is not None
        prompt = draft.inputs[0] if isinstance(draft.inputs[0], str) else None
        return self._generate(draft.row, draft.settings, prompt, ids[0])

    def _generate(
        self, row: GenerateRow, settings: _RequestSettings, prompt: str | None, ids: np.ndarray
    ) -> RowInFlight:
        """Makes one request for each sample. The first one also scores the prompt, if that is asked for."""
        params, key = settings.params, next(self._keys)
        ids = ids if len(ids) else np.array([END_OF_TEXT], np.int32)
        start = None if params.prompt_logprobs is None else 1
        constraint = settings.new_constraint() if settings.new_constraint is not None else None
        requests = [
            Request(
                key=key,
                prompt_token_ids=ids,
                params=params,
                seed=settings.seed,
                row=row.row,
                sample=sample,
                score_start=None if sample else start,
                stop_strings=settings.stop_strings,
                new_constraint=constraint,
            )
            for sample in range(params.n)
        ]
        return RowInFlight(row, requests, prompt, constraint=constraint)

    def _text_or_ids(self, value: object, name: str) -> str | np.ndarray:
        """Checks an input: text, or token ids in [0, V), which become [T] int32."""
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

    def _settings(self, params: SamplingParams) -> _RequestSettings:
        """Checks parameters, and makes the settings of requests. The latest are kept: rows often share theirs."""
        last = self._last  # another thread may replace it
        if last is not None and last.given is params and vars(last.copy) == vars(params):
            return last.settings
        try:
            given, copy = params, params.clone()
        except ValueError as error:
            raise sampling_error(error) from error
        params = self._without_bad_words(copy)
        permitted = self._check_params(params)
        strings = params.stop_strings
        settings = _RequestSettings(
            params,
            seed=self.seed if params.seed is None else params.seed,
            stop_strings=_stop_strings(strings, params.include_stop_str_in_output, params.min_tokens)
            if strings
            else None,
            new_constraint=self._constraint(params, permitted),
        )
        self._last = _Latest(given, copy, settings)
        return settings

    def _without_bad_words(self, params: SamplingParams) -> SamplingParams:
        """Parameters whose `bad_words` are among their `bad_token_ids`."""
        if not params.bad_words:
            return params
        if self.tokenizer is None:
            raise RowError("no_tokenizer", "bad_words need a tokenizer; pass bad_token_ids, or load one")
        words = [params.bad_words] if isinstance(params.bad_words, str) else params.bad_words
        banned = [*(params.bad_token_ids or ()), *bad_word_ids(self.tokenizer, words)]
        return replace(params, bad_words=None, bad_token_ids=banned)

    def _check_params(self, params: SamplingParams) -> np.ndarray | None:
        """Raises RowError where a value is wrong for this model. Returns `permitted_ids` beside a constraint."""
        for name in ("stop_token_ids", "allowed_token_ids", "bad_token_ids", "logit_bias"):
            given = getattr(params, name)
            if given and (beyond := [i for i in given if i >= self.vocab_size]):
                raise RowError("bad_sampling", f"{name} holds id {beyond[0]}, expected ids below {self.vocab_size}")
        num_banned = 1 + len(params.bad_token_ids or ()) + len(params.stop_token_ids or ())
        is_much_left = params.allowed_token_ids is None and num_banned < self._num_sampleable
        has_constraint = any(getattr(params, name) is not None for name in CONSTRAINTS)
        permitted = None if is_much_left and not has_constraint else permitted_ids(params, self._sampleable)
        may_be_nothing = permitted is not None or params.min_tokens or params.ignore_eos  # else token 0 is left
        if (
            may_be_nothing
            and not is_much_left
            and (reason := reason_of_nothing(params, self._sampleable if permitted is None else permitted))
        ):
            raise RowError("bad_sampling", reason)
        if params.stop_strings and self.tokenizer is None:
            raise RowError("no_tokenizer", "stop strings need a tokenizer; pass stop_token_ids, or load one")
        return permitted

    @cached_property
    def _sampleable(self) -> np.ndarray:
        """[V] bool: ids with bytes, and the end of text. Without a tokenizer every id."""
        sampleable = np.ones(self.vocab_size, bool)
        if self.tokenizer is not None:
            known = self.tokenizer.token_bytes[: self.vocab_size]
            sampleable[: len(known)] = [bool(token) for token in known]
            sampleable[len(known) :] = False
            sampleable[END_OF_TEXT] = True
        return sampleable

    @cached_property
    def _num_sampleable(self) -> int:
        return int(np.count_nonzero(self._sampleable))

    def _constraint(self, params: SamplingParams, permitted: np.ndarray | None) -> Callable[[], RowConstraint] | None:
        given = params.json_schema, params.regex, params.grammar
        if given == (None, None, None):
            return None
        if self._constraints is None:
            raise RowError("no_tokenizer", "json_schema, regex and grammar need a tokenizer")
        bits = None if permitted is None else permitted.view(np.uint8)
        return partial(self._constraints.start, *given, permitted=bits)


def _attempt(make: Callable[..., Built], row: GenerateRow | ScoreRow, *given: Any) -> Built | ErrorRow:
    """Calls `make`; the result is an error row if it raises RowError."""
    try:
        return make(*given)
    except RowError as error:
        # prompt_tokens is 0 here, and null for a prompt that is too long, as in all parts that earlier versions wrote:
        # a resumed job must give equal parts.
        return ErrorRow.of(row, error, None if error.code == "prompt_too_long" else 0)


def _conversation(
    row: GenerateRow | ScoreRow | ErrorRow, chat_format: Callable[[], ChatFormat]
) -> tuple[ChatFormat, Conversation] | None:
    """The conversation that a row's prompt is, with the format that renders it; None where it is something else."""
    prompt = row.prompt if isinstance(row, GenerateRow) else None
    if not isinstance(prompt, Mapping) or "messages" not in prompt or {"prompt_token_ids", "prompt"} & prompt.keys():
        return None
    conversation = Conversation(
        as_lists(prompt["messages"]),
        tools=as_lists(prompt.get("tools")),
        add_generation_prompt=prompt.get("add_generation_prompt", True),
        continue_final_message=prompt.get("continue_final_message", False),
        template_kwargs=prompt.get("chat_template_kwargs") or {},
    )
    return prompt.get("chat_format") or chat_format(), conversation


def _prompt(prompt: Prompt) -> TextOrIds:
    """The text or the ids of a prompt in any of its forms."""
    if not isinstance(prompt, Mapping):
        return prompt
    for key in ("prompt_token_ids", "prompt"):
        if key in prompt:
            return cast("TextOrIds", prompt[key])
    raise RowError("bad_type", f"the prompt has keys {sorted(prompt)}, expected prompt, prompt_token_ids or messages")


def _integers(value: object, name: str) -> np.ndarray:
    """Checks token ids: [T] integers; of dtype object if one does not fit into 64 bits."""
    if type(value) is list and set(map(type, value)) == {int}:  # what most callers give
        return _array_of(value)
    if (array := id_array(value)) is not None:
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise RowError("bad_type", f"the {name} is an array {array.shape} of {array.dtype}, expected [T] integers")
        return array
    value = plain(value)
    if isinstance(value, (bytes, bytearray)) or not isinstance(value, Sequence):
        raise RowError("bad_type", f"the {name} is {type(value).__name__}, expected text or a list of token ids")
    wrong = [item for item in value if type(item) is not int and not is_integer(item)]
    if wrong:
        raise RowError("bad_type", f"the {name} holds {wrong[0]!r}, expected token ids (integers)")
    return _array_of(value)


def _array_of(values: Sequence[int]) -> np.ndarray:
    try:
        return np.array(values, np.int64)
    except OverflowError:
        return np.array(values, object)
