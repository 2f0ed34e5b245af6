"""How one request is sampled. Field names and meanings follow vLLM's offline API where both have them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

TopPOrder = Literal["standard", "rwkv"]


def _reject(name: str, value: Any, expected: str) -> None:
    raise ValueError(f"SamplingParams.{name}: got {value!r}, expected {expected}")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclass(frozen=True)
class SamplingParams:
    """Sampling settings of one request.

    Args:
        n: samples per prompt.
        temperature: 0 is exact greedy decoding.
        top_p: smallest set of most likely tokens whose probability reaches it; ties with the last one are kept.
        top_k: number of most likely tokens kept; 0 or -1 keeps all.
        min_p: drop tokens less likely than `min_p` times the most likely one.
        presence_penalty, frequency_penalty: subtracted from the logits of generated tokens, once and per occurrence.
        repetition_penalty: divides positive and multiplies negative logits of tokens in the prompt or the output.
        penalty_decay: occurrences are multiplied by this at every step, before the new token is counted.
        max_tokens: completion length limit, in tokens.
        min_tokens: the first so many tokens are no end of text and no stop token, and complete no stop string.
        stop: a string or strings that end the completion; not part of the text unless `include_stop_str_in_output`.
        stop_token_ids: token ids that end the completion.
        ignore_eos: go on after token 0 (end of text).
        logit_bias: token id → value added to its logit.
        allowed_token_ids: sample only these.
        bad_token_ids: never sample these.
        logprobs: also return this many most likely tokens at each step, and the sampled one; None is off.
        prompt_logprobs: the same for each prompt token after the first.
        seed: overrides the engine's seed for this request.
        top_p_order: "standard" applies temperature first. "rwkv" is ChatRWKV's: top-p and top-k on the untempered
            probabilities, then the power 1/temperature; digits, spaces and tabs are not counted by penalties.
        json_schema, regex, grammar: constrain the text; at most one of them (extra `structured`).

    Raises:
        ValueError: a value is of the wrong type or out of range; the message names field, value and range.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    penalty_decay: float = 1.0
    max_tokens: int = 16
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_token_ids: Sequence[int] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    seed: int | None = None
    top_p_order: TopPOrder = "standard"
    json_schema: str | Mapping[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        self._integer("n", 1, 65536)
        self._number("temperature", 0.0, 100.0)
        self._number("top_p", 0.0, 1.0)
        self._integer("top_k", -1, 2**31 - 1)
        self._number("min_p", 0.0, 1.0)
        self._number("presence_penalty", -100.0, 100.0)
        self._number("frequency_penalty", -100.0, 100.0)
        self._number("repetition_penalty", 0.0, 100.0, above=True)
        self._number("penalty_decay", 0.0, 1.0)
        self._integer("max_tokens", 0, 2**31 - 1)
        self._integer("min_tokens", 0, 2**31 - 1)
        if self.min_tokens > self.max_tokens:
            _reject("min_tokens", self.min_tokens, f"at most max_tokens ({self.max_tokens})")
        self._stop_strings()
        for name in ("stop_token_ids", "allowed_token_ids", "bad_token_ids"):
            self._token_ids(name)
        if self.allowed_token_ids is not None and len(self.allowed_token_ids) == 0:
            _reject("allowed_token_ids", [], "at least one token id, or None for all")
        for name in ("ignore_eos", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                _reject(name, getattr(self, name), "true or false")
        self._biases()
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                self._integer(name, 0, 2**16)
        if self.seed is not None:
            self._integer("seed", -(2**63), 2**64 - 1)
        if self.top_p_order not in ("standard", "rwkv"):
            _reject("top_p_order", self.top_p_order, "'standard' or 'rwkv'")
        self._constraints()
        self._keep_copies()

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, empty where there is none."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    def _keep_copies(self) -> None:
        """What the caller does to its lists and maps afterwards changes nothing here."""
        for name in ("stop", "stop_token_ids", "allowed_token_ids", "bad_token_ids"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, list(getattr(self, name)))
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    def _integer(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            _reject(name, value, f"an integer from {low} to {high}")

    def _number(self, name: str, low: float, high: float, above: bool = False) -> None:
        value = getattr(self, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or (above and value == low):
            _reject(name, value, f"a number {'above' if above else 'from'} {low:g} {'up ' if above else ''}to {high:g}")

    def _stop_strings(self) -> None:
        if self.stop is not None and not isinstance(self.stop, (str, list, tuple)):
            _reject("stop", self.stop, "a non-empty string or a list of non-empty strings")
        for text in self.stop_strings:
            if not isinstance(text, str) or not text:
                _reject("stop", self.stop, "a non-empty string or a list of non-empty strings")
            if any("\ud800" <= character <= "\udfff" for character in text):
                _reject("stop", self.stop, "text that has an encoding, without lone surrogates")

    def _token_ids(self, name: str) -> None:
        ids = getattr(self, name)
        if ids is None:
            return
        if not isinstance(ids, (list, tuple)) or not all(_is_id(i) for i in ids):
            _reject(name, ids, "a list of token ids (integers from 0)")

    def _biases(self) -> None:
        expected = "a map from token id to a finite number"
        if self.logit_bias is not None and not isinstance(self.logit_bias, Mapping):
            _reject("logit_bias", self.logit_bias, expected)
        for token_id, bias in (self.logit_bias or {}).items():
            if not _is_id(token_id) or not isinstance(bias, (int, float)) or not math.isfinite(bias):
                _reject("logit_bias", self.logit_bias, expected)

    def _constraints(self) -> None:
        for name in ("regex", "grammar"):
            if not isinstance(getattr(self, name), (str, type(None))):
                _reject(name, getattr(self, name), "text, or None")
        if not isinstance(self.json_schema, (str, Mapping, type(None))):
            _reject("json_schema", self.json_schema, "a schema as text or as a mapping, or None")
        given = [name for name in ("json_schema", "regex", "grammar") if getattr(self, name) is not None]
        if len(given) > 1:
            _reject(
                given[1], getattr(self, given[1]), f"at most one of json_schema, regex, grammar ({given[0]} is set too)"
            )
