"""Checks of what a caller of `LLM` gives: prompts, pairs and sampling parameters, before any of them is served.

A value of a wrong type is a mistake in the program, and is refused. A wrong value, such as a token id out of range, is
a mistake in the data: it costs its own row only.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .sampling_params import SamplingParams

SHOWN = 3
"""Wrong items that a message names."""
PROMPT_KEYS = ("prompt_token_ids", "prompt", "messages")

ROWS_AT_ONCE = 256
"""Rows of a list that are encoded together."""

_NO_TOKENIZER = "which is text, but this model was loaded with tokenizer=None"


def prompt_list(prompts: Any, has_tokenizer: bool) -> list[Any]:
    """Returns prompts as a list. A text or a mapping that is given in place of a list becomes a list with this item.

    Raises:
        ValueError: this is no list of prompts; the message names the first wrong ones.
    """
    found = [prompts] if isinstance(prompts, (str, Mapping)) else _listed(prompts, "prompts")
    _check("prompt", found, lambda prompt: _wrong_prompt(prompt, has_tokenizer))
    return found


def pair_list(pairs: Any, has_tokenizer: bool) -> list[tuple[Any, Any]]:
    """Returns pairs of context and continuation as a list.

    Raises:
        ValueError: this is no list of pairs; the message names the first wrong ones.
    """
    found: list[Any] = [pairs] if isinstance(pairs, str) else _listed(pairs, "pairs")
    _check("pair", found, lambda pair: _wrong_pair(pair, has_tokenizer))
    return found


def check_prefix(prefix: Any, has_tokenizer: bool) -> None:
    """Raises ValueError where this is no prefix of contexts: text, a list of token ids, or None."""
    is_text = isinstance(prefix, str)
    if prefix is not None and not is_text and not _is_ids(prefix):
        raise ValueError(f"prefix: got {reprlib.repr(prefix)}, expected text, a list of token ids, or None")
    if is_text and not has_tokenizer:
        raise ValueError(f"prefix: got {reprlib.repr(prefix)}, {_NO_TOKENIZER}")


def params_list(params: Any, num_prompts: int) -> list[SamplingParams]:
    """Returns a list with the sampling parameters of each prompt.

    Args:
        params: None, `SamplingParams` for all prompts, or an iterable with one for each.

    Raises:
        ValueError: this is something else, or a list of another length.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    refuse_mapping(params)
    found = _listed(params, "sampling_params")
    _check("sampling_params", found, _wrong_params)
    if len(found) != num_prompts:
        raise ValueError(f"got {len(found)} sampling_params for {num_prompts} prompts, expected as many")
    return found


def checked_params(params: Iterable[Any]) -> Iterator[SamplingParams]:
    """Yields sampling parameters. Raises ValueError at something else."""
    for index, one in enumerate(params):
        if reason := _wrong_params(one):
            raise ValueError(f"sampling_params {index}: got {reprlib.repr(one)}, {reason}")
        yield one


def refuse_mapping(params: Any) -> None:
    """Raises ValueError for a mapping or a text in place of sampling parameters."""
    if isinstance(params, (Mapping, str)):
        kind = "a mapping" if isinstance(params, Mapping) else "a text"
        raise ValueError(f"sampling_params: got {kind}, expected SamplingParams(...) or a list of them")


def is_several(continuation: Any) -> bool:
    """Whether this is a list of continuations. An empty list is one continuation, without tokens."""
    return isinstance(continuation, (list, tuple)) and isinstance([*continuation, 0][0], (str, list, tuple, np.ndarray))


def rows_at_once(*inputs: Iterable[Any]) -> int:
    """The number of rows that are encoded together: many of a list, and one of an iterator, which may wait."""
    return ROWS_AT_ONCE if all(isinstance(one, (list, tuple)) for one in inputs) else 1


def _listed(items: Any, name: str) -> list[Any]:
    if isinstance(items, (str, bytes)) or not isinstance(items, Iterable):
        raise ValueError(f"{name}: got {reprlib.repr(items)}, expected a list of {name}")
    return list(items)


def _check(name: str, items: Iterable[Any], wrong: Callable[[Any], str | None]) -> None:
    """Raises ValueError with the first items that are wrong."""
    found = [(index, item, reason) for index, item in enumerate(items) if (reason := wrong(item)) is not None]
    if found:
        lines = [f"{name} {index}: got {reprlib.repr(item)}, {reason}" for index, item, reason in found[:SHOWN]]
        rest = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise ValueError("\n".join([*lines, *rest]))


def _wrong_params(params: Any) -> str | None:
    return None if isinstance(params, SamplingParams) else "expected SamplingParams(...)"


def _wrong_prompt(prompt: Any, has_tokenizer: bool) -> str | None:
    """Returns why this is no prompt; None where it is one."""
    value, is_text = prompt, isinstance(prompt, str)
    if isinstance(prompt, Mapping):
        key = next((key for key in PROMPT_KEYS if key in prompt), None)
        if key is None:
            return f"expected a mapping with one of the keys {', '.join(PROMPT_KEYS)}"
        value = prompt[key]
        is_text = key == "messages" or isinstance(value, str)
        if key == "messages" and not _is_messages(value):
            return "expected messages: a list of mappings with role and content"
    if is_text:
        return None if has_tokenizer else _NO_TOKENIZER
    if _is_ids(value):
        return None
    if _is_messages(value) and len(value):
        return "expected a prompt; messages are given as {'messages': [...]}"
    return "expected text, a list of token ids, or a mapping with prompt, prompt_token_ids or messages"


def _wrong_pair(pair: Any, has_tokenizer: bool) -> str | None:
    """Returns why this is no context with a continuation, or with several; None where it is."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        return "expected (context, continuation)"
    context, continuation = pair
    parts = [context, *(continuation if is_several(continuation) else [continuation])]
    if all(isinstance(part, str) for part in parts):
        return None if has_tokenizer else _NO_TOKENIZER
    if all(map(_is_ids, parts)):
        return None
    return "expected (context, continuation): both must be text, or both lists of token ids"


def _is_messages(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(message, Mapping) for message in value)


def _is_ids(value: Any) -> bool:
    """Whether this is a list of integers, of any size."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "iu"
    if isinstance(value, (str, bytes, bytearray)) or not isinstance(value, Sequence):
        return False
    return set(map(type, value)) <= {int} or all(isinstance(i, int) and not isinstance(i, bool) for i in value)
