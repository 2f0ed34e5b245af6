"""How one request is sampled. Field names and meanings follow vLLM's offline API where both have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, Literal, get_args

from . import vllm_arguments
from .errors import RowError
from .sampling_fields import (
    Biases,
    Choice,
    Containers,
    Flag,
    Integer,
    MostLikely,
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
from .structured_outputs import StructuredOutputsParams

__all__ = ["SAMPLING_FIELDS", "GuidedDecodingParams", "RequestOutputKind", "SamplingParams", "StructuredOutputsParams"]

GuidedDecodingParams = StructuredOutputsParams
"""The name of `StructuredOutputsParams` in older versions of vLLM."""
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


class RequestOutputKind(Enum):
    """vLLM's values of `output_kind`. Each has the same effect here: `generate` returns finished results."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class SamplingParams:
    """Sampling settings of one request.

    A field may be set later; a call takes the values that the fields have when it is made. Fields of vLLM's
    `SamplingParams` that mean nothing here are accepted with one warning, and those that would change results are
    refused: the page "Coming from vLLM" lists them.

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
            `include_stop_str_in_output` is set. None takes those of the chat format where the prompt comes from
            messages, and is none elsewhere; an empty list is none everywhere.
        stop_token_ids: token ids that end the completion.
        truncate_prompt_tokens: keep only so many tokens of the prompt, the last ones; -1 or None keeps all.
        ignore_eos: do not stop at token 0, the end of text.
        include_stop_str_in_output: keep the stop string that ended the completion in its text.
        logit_bias: token id → number added to the token's logit.
        allowed_token_ids: sample only these token ids; None allows all.
        bad_token_ids: never sample these token ids.
        bad_words: never sample the tokens of these words, at the beginning of a text and after a space. Each word must
            be one token.
        logprobs: also return the log-probabilities of this many most likely tokens at each step, and of the sampled
            token, which is the first entry; -1 returns those of all tokens, None none.
        prompt_logprobs: also return the log-probabilities of this many most likely tokens at the position of each
            prompt token after the first, and of the prompt token; -1 and None as for `logprobs`.
        detokenize: False returns no texts: `text` of a completion is "", and `decoded_token` is None. Stop strings
            still end a completion.
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
    logprobs: int | None = sampling_field(None, MostLikely(-1, 2**16), in_jobs=False)
    prompt_logprobs: int | None = sampling_field(None, MostLikely(-1, 2**16), in_jobs=False)
    seed: int | None = sampling_field(None, Integer(-(2**63), 2**64 - 1), openai=("seed",))
    top_p_order: TopPOrder = sampling_field("standard", _ORDER)  # noqa: RUF009 - the field specifier of this class
    json_schema: str | Mapping[str, Any] | None = sampling_field(None, Schema())
    regex: str | None = sampling_field(None, Text())
    grammar: str | None = sampling_field(None, Text())
    # Later fields come last, so that values by position keep their meaning.
    truncate_prompt_tokens: int | None = sampling_field(None, Integer(-1, 2**31 - 1))
    bad_words: str | Sequence[str] | None = sampling_field(None, Strings())
    detokenize: bool = sampling_field(True, Flag(), in_jobs=False)

    if not TYPE_CHECKING:  # type checkers see the signature of the fields

        def __init__(self, *values: Any, **given: Any) -> None:
            if values:
                given = {**_named(values), **given}
            if not given.keys() <= _DEFAULTS.keys():
                given = _own_fields(given)
            kept = self.__dict__
            kept |= _DEFAULTS
            for name, value in given.items():
                if value is not _DEFAULTS[name]:
                    kept[name] = _checked(name, value)
            self._check_together()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _DEFAULTS:
            given = {name: value}
        elif name in ("structured_outputs", "guided_decoding") and value is None:
            given = dict.fromkeys(CONSTRAINTS)
        else:
            given = _own_fields({name: value})
        self.__dict__.update({field: _checked(field, one) for field, one in given.items()})

    @classmethod
    def from_optional(cls, **given: Any) -> SamplingParams:
        """Makes parameters from fields of which any may be None, which stands for the default."""
        return cls(
            **{
                name: value
                for name, value in given.items()
                if value is not None or name not in SAMPLING_FIELDS or SAMPLING_FIELDS[name].is_optional
            }
        )

    def clone(self) -> SamplingParams:
        """Returns a copy, with lists and mappings of token ids and strings of its own.

        Raises:
            ValueError: fields that have been set contradict each other.
        """
        found = object.__new__(type(self))
        kept = found.__dict__
        kept.update(self.__dict__)
        for name in _CONTAINERS:
            if (value := kept.get(name)) is not None and isinstance(value, (list, dict)):
                kept[name] = value.copy()
        found._check_together()
        return found

    def _check_together(self) -> None:
        """Raises ValueError where fields contradict each other."""
        if self.min_tokens and self.min_tokens > self.token_limit:
            self._reject("min_tokens", f"at most max_tokens ({self.token_limit})")
        if self.json_schema is not None or self.regex is not None:
            given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
            if len(given) > 1:
                self._reject(given[1], f"at most one of {', '.join(CONSTRAINTS)} ({given[0]} is set too)")

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

    def _reject(self, name: str, expected: str) -> None:
        raise ValueError(f"SamplingParams.{name}: got {getattr(self, name)!r}, expected {expected}")


SAMPLING_FIELDS: dict[str, SamplingField] = {one.name: one.metadata[SamplingField] for one in fields(SamplingParams)}
"""The fields of `SamplingParams` by name, in their order."""
_DEFAULTS: dict[str, Any] = {one.name: one.default for one in fields(SamplingParams)}


_CONTAINERS = [one.name for one in fields(SamplingParams) if isinstance(one.metadata[SamplingField].kind, Containers)]
"""Fields whose values may be lists or mappings that a caller can change in place."""


def _checked(name: str, value: Any) -> Any:
    """Returns the value of a field in the form in which it is kept.

    Raises:
        ValueError: it is of the wrong type or out of range.
    """
    declared, found = SAMPLING_FIELDS[name], plain(value)
    if expected := declared.expected(found):
        raise ValueError(f"SamplingParams.{name}: got {found!r}, expected {expected}")
    return found if found is None else declared.kind.kept(found)


def _named(values: Sequence[Any]) -> dict[str, Any]:
    """The values of the first fields, by name."""
    if len(values) > len(SAMPLING_FIELDS):
        raise TypeError(f"SamplingParams takes {len(SAMPLING_FIELDS)} fields, got {len(values)} values")
    return dict(zip(SAMPLING_FIELDS, values, strict=False))


def _own_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields in which those of vLLM are replaced by what they become here.

    Raises:
        ConfigurationError: a name is not known, or a value has no equal here.
    """
    own = {name: value for name, value in given.items() if name in SAMPLING_FIELDS}
    others = {name: value for name, value in given.items() if name not in SAMPLING_FIELDS}
    if others.get("best_of") == given.get("n", 1):
        others.pop("best_of", None)
    table = vllm_arguments.SAMPLING_ARGUMENTS
    return own | vllm_arguments.own_arguments("SamplingParams", others, SAMPLING_FIELDS, table)


SamplingParams.__signature__ = Signature(  # type: ignore[attr-defined]
    [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=value) for name, value in _DEFAULTS.items()]
)


def sampling_error(error: ValueError) -> RowError:
    """The error of a row whose sampling parameters `SamplingParams` refuses."""
    return RowError("bad_sampling", str(error).removeprefix("SamplingParams."))
