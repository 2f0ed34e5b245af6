"""How one request is sampled. Field names and meanings follow vLLM's offline API where both have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from .sampling_fields import (
    Biases,
    Choice,
    Flag,
    Integer,
    Number,
    SamplingField,
    Schema,
    Strings,
    Text,
    TokenIds,
    documented_arguments,
    plain,
    sampling_field,
)

TopPOrder = Literal["standard", "rwkv"]
CONSTRAINTS = ("json_schema", "regex", "grammar")
"""Fields of which at most one is given."""
UNLIMITED_TOKENS = 65536
"""The largest number of tokens of a completion where `max_tokens` is None. A recurrent model has no context length
that would limit it."""

_COUNT = Integer(0, 2**31 - 1)
_PENALTY = Number(-100.0, 100.0)
_SHARE = Number(0.0, 1.0)
_ORDER = Choice(get_args(TopPOrder))


@dataclass(frozen=True)
class SamplingParams:
    """Sampling settings of one request.

    Args:
        n: samples for each prompt.
        temperature: divides the logits before sampling; 0 is exact greedy decoding.
        top_p: keep the smallest set of most likely tokens whose probabilities add up to this; ties with the last one
            are kept.
        top_k: keep this many most likely tokens; 0 or -1 keeps all.
        min_p: drop tokens less likely than `min_p` times the most likely one.
        presence_penalty: subtracted once from the logit of each token that has been generated.
        frequency_penalty: subtracted from the logit of each generated token once for each occurrence.
        repetition_penalty: divides positive and multiplies negative logits of tokens in the prompt or the output.
        penalty_decay: multiplies counts of occurrences at every step, before the new token is counted.
        max_tokens: largest number of tokens of a completion; None is 65,536 tokens.
        min_tokens: among the first `min_tokens` tokens there is no end of text and no stop token, and no stop string
            is completed.
        stop: a string or strings that end the completion. The text ends before the string, unless
            `include_stop_str_in_output` is set.
        stop_token_ids: token ids that end the completion.
        ignore_eos: do not stop at token 0, the end of text.
        include_stop_str_in_output: keep the stop string that ended the completion in its text.
        logit_bias: token id → number added to the token's logit.
        allowed_token_ids: sample only these token ids; None allows all.
        bad_token_ids: never sample these token ids.
        logprobs: also return the log-probabilities of this many most likely tokens at each step, and of the sampled
            token; None returns none.
        prompt_logprobs: also return the log-probabilities of this many most likely tokens at the position of each
            prompt token after the first, and of the prompt token; None returns none.
        detokenize: False returns no texts: the completion's is "", and `decoded_token` is None. It excludes `stop`.
        seed: the seed of this request's random numbers; None takes the engine's.
        top_p_order: "standard" applies temperature first. "rwkv" does what ChatRWKV does: top-p and top-k on the
            untempered probabilities, then the power 1/temperature; penalties do not count digits, spaces and tabs.
        json_schema: the text is JSON that this schema accepts. Of json_schema, regex and grammar at most one may be
            given; each needs the extra `structured`.
        regex: the text matches this regular expression.
        grammar: the text is derived from the rule `root` of this grammar, in the EBNF of GBNF.

    Numbers and arrays of numpy, torch and pandas are taken as Python's own numbers and lists.

    Raises:
        ValueError: a value is of the wrong type or out of range; the message names field, value and range.

    >>> params = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=64, stop=["\\n\\n"])
    >>> params.stop_strings
    ('\\n\\n',)
    >>> SamplingParams(top_p=3)
    Traceback (most recent call last):
    ValueError: SamplingParams.top_p: got 3, expected a number from 0 to 1
    """

    n: int = sampling_field(1, Integer(1, 65536), openai=("n",))
    temperature: float = sampling_field(1.0, Number(0.0, 100.0), openai=("temperature",))
    top_p: float = sampling_field(1.0, _SHARE, openai=("top_p",))
    top_k: int = sampling_field(0, Integer(-1, 2**31 - 1))
    min_p: float = sampling_field(0.0, _SHARE)
    presence_penalty: float = sampling_field(0.0, _PENALTY, openai=("presence_penalty",))
    frequency_penalty: float = sampling_field(0.0, _PENALTY, openai=("frequency_penalty",))
    repetition_penalty: float = sampling_field(1.0, Number(0.0, 100.0, is_open=True))
    penalty_decay: float = sampling_field(1.0, _SHARE)
    max_tokens: int | None = sampling_field(16, _COUNT, openai=("max_tokens", "max_completion_tokens"), takes_none=True)
    min_tokens: int = sampling_field(0, _COUNT)
    stop: str | Sequence[str] | None = sampling_field(None, Strings(), openai=("stop",))
    stop_token_ids: Sequence[int] | None = sampling_field(None, TokenIds())
    ignore_eos: bool = sampling_field(False, Flag())
    include_stop_str_in_output: bool = sampling_field(False, Flag())
    logit_bias: Mapping[int, float] | None = sampling_field(None, Biases(), openai=("logit_bias",))
    allowed_token_ids: Sequence[int] | None = sampling_field(None, TokenIds(may_be_empty=False))
    bad_token_ids: Sequence[int] | None = sampling_field(None, TokenIds())
    logprobs: int | None = sampling_field(None, Integer(0, 2**16), in_jobs=False)
    prompt_logprobs: int | None = sampling_field(None, Integer(0, 2**16), in_jobs=False)
    detokenize: bool = sampling_field(True, Flag(), in_jobs=False)
    seed: int | None = sampling_field(None, Integer(-(2**63), 2**64 - 1), openai=("seed",))
    top_p_order: TopPOrder = sampling_field("standard", _ORDER)  # noqa: RUF009 - the field specifier of this class
    json_schema: str | Mapping[str, Any] | None = sampling_field(None, Schema())
    regex: str | None = sampling_field(None, Text())
    grammar: str | None = sampling_field(None, Text())

    def __post_init__(self) -> None:
        for name, declared in SAMPLING_FIELDS.items():
            value = getattr(self, name)
            if value is getattr(type(self), name):  # the class attribute of a field is its default
                continue
            if (found := plain(value)) is not value:
                object.__setattr__(self, name, found)
            if expected := declared.expected(found):
                self._reject(name, expected)
        if self.min_tokens > self.token_limit:
            self._reject("min_tokens", f"at most max_tokens ({self.token_limit})")
        if self.stop_strings and not self.detokenize:
            self._reject("stop", "no stop strings, which are searched in the text, where detokenize is False")
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(given) > 1:
            self._reject(given[1], f"at most one of {', '.join(CONSTRAINTS)} ({given[0]} is set too)")
        self._copy_containers()

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, empty where there is none."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def token_limit(self) -> int:
        """The largest number of tokens of a completion: `max_tokens`, or `UNLIMITED_TOKENS` where that is None."""
        return UNLIMITED_TOKENS if self.max_tokens is None else self.max_tokens

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The names of all fields, in their order."""
        return tuple(SAMPLING_FIELDS)

    @classmethod
    def field_docs(cls) -> dict[str, str]:
        """Returns the meaning of each field, from this class's docstring."""
        return documented_arguments(cls)

    def _copy_containers(self) -> None:
        """Replaces lists and mappings by copies, so that the caller may change its own later."""
        for name in SAMPLING_FIELDS:
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, list(value))
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    def _reject(self, name: str, expected: str) -> None:
        raise ValueError(f"SamplingParams.{name}: got {getattr(self, name)!r}, expected {expected}")


SAMPLING_FIELDS: dict[str, SamplingField] = {one.name: one.metadata[SamplingField] for one in fields(SamplingParams)}
"""The fields of `SamplingParams` by name, in their order."""
