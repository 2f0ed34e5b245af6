"""Checks of what a caller of `LLM` gives: prompts, pairs and sampling parameters, before any of them is served.

A value of a wrong type is a mistake in the program, and is refused. A wrong value, such as a token id out of range, is
a mistake in the data: it costs its own row only.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, fields
from itertools import repeat
from os import PathLike
from types import NoneType
from typing import Any

from .errors import ConfigurationError, one_of
from .rows import GenerateRow, id_array, is_integer
from .sampling_fields import plain
from .sampling_params import SamplingParams
from .settings import EngineSettings, ModelSettings
from .vllm_arguments import LLM_ARGUMENTS, own_arguments, warn_once

SHOWN = 3
"""Wrong items that a message names."""
PROMPT_KEYS = ("prompt_token_ids", "prompt", "messages")
_MEDIA = ("multi_modal_data", "prompt_embeds", "encoder_prompt", "decoder_prompt")
"""vLLM's keys of prompts that are no text."""

ROWS_AT_ONCE = 256
"""Rows of a list that are encoded together."""

_NO_TOKENIZER = "which is text, but this model was loaded with tokenizer=None"


_DTYPES = {"half": "float16", "float": "float32"}
"""vLLM's and PyTorch's names of dtypes that have another name here."""
_VLLM_QUANTIZATIONS = (
    *("awq", "awq_marlin", "auto_round", "bitblas", "bitsandbytes", "compressed-tensors", "experts_int8", "fbgemm_fp8"),
    *("fp8", "fp_quant", "gguf", "gptq", "gptq_marlin", "hqq", "inc", "ipex", "marlin", "modelopt", "modelopt_fp4"),
    *("moe_wna16", "mxfp4", "petit_nvfp4", "ptpc_fp8", "quark", "rtn", "torchao", "tpu_int8"),
)
"""vLLM's names of quantizations."""


def settings_of(given: Mapping[str, Any]) -> tuple[ModelSettings, EngineSettings]:
    """Returns the settings that the arguments of `LLM` give.

    Args:
        given: the arguments by name; `others` has those of vLLM and Hugging Face.

    Raises:
        ConfigurationError: an argument is not known, has no equal here, or is given under two names.
    """
    groups = (ModelSettings, EngineSettings)
    defaults = {field.name: field.default for group in groups for field in fields(group)}
    values = {name: given[name] for name in defaults}
    foreign = own_arguments("LLM", given["others"], defaults, LLM_ARGUMENTS)
    revision = foreign.pop("revision", None)
    for name, value in foreign.items():
        if values[name] not in (defaults[name], value):
            raise ConfigurationError(f"got {values[name]!r}, and {value!r} under another name; give one", setting=name)
        values[name] = value
    values["model"] = _with_revision(values["model"], revision)
    if str(values["tokenizer"]) == str(given["model"]):
        values["tokenizer"] = "auto"
    if values["quantization"] in _VLLM_QUANTIZATIONS:
        raise ConfigurationError(
            f"got {values['quantization']!r}, whose weights this engine does not read; 'int8' or 'w8a8' quantizes any "
            "RWKV model when it is loaded",
            setting="quantization",
        )
    values["device"] = f"cuda:{values['device']}" if type(values["device"]) is int else str(values["device"])
    values["seed"] = 0 if values["seed"] is None else values["seed"]
    with _named_as_given(given["others"]):
        values["dtype"] = _dtype(values["dtype"])
        model, engine = ({one.name: _typed(one, values[one.name]) for one in fields(group)} for group in groups)
        return ModelSettings(**model), EngineSettings(**engine)


@contextmanager
def _named_as_given(others: Iterable[str]) -> Iterator[None]:
    """Inside, an error about a setting that has come under another name has that name."""
    names = {LLM_ARGUMENTS[name].text: name for name in others if LLM_ARGUMENTS[name].effect == "renamed"}
    try:
        yield
    except ConfigurationError as error:
        if error.setting not in names:
            raise
        raise ConfigurationError(str(error.args[0]), setting=names[error.setting]) from error


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "True or False"),
    "int": ((int,), "an integer"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a text"),
    "Path": ((PathLike,), "a path"),
    "None": ((NoneType,), "None"),
}
"""Part of a setting's annotation → types of its values, and the values in words."""


def _typed(setting: Field[Any], value: Any) -> Any:
    """A value as Python's own type.

    Raises:
        ConfigurationError: it is none of the types of the setting.
    """
    found = plain(value)
    parts = str(setting.type).split(" | ")
    kinds = [_KINDS[part] for part in parts if part in _KINDS]
    is_right = any(isinstance(found, types) and (type(found) is not bool or bool in types) for types, _ in kinds)
    if not is_right and len(kinds) == len(parts):  # other types are checked where they are used
        raise ConfigurationError(
            f"got {reprlib.repr(value)}, expected {one_of([words for _, words in kinds])}", setting=setting.name
        )
    return found


def _with_revision(model: Any, revision: str | None) -> Any:
    if revision is None:
        return model
    if isinstance(model, str) and model.startswith("hf://") and "@" not in model:
        return f"{model}@{revision}"
    warn_once("LLM", "revision", "the model is no repository without a revision: hf://owner/repo")
    return model


def _dtype(dtype: Any) -> Any:
    """The name of a dtype, which may be one of PyTorch."""
    name = str(dtype).removeprefix("torch.")
    return _DTYPES.get(name, name)


def prompt_list(prompts: Any, has_tokenizer: bool) -> list[Any]:
    """Returns prompts as a list. One prompt that is given in place of a list becomes a list with this item.

    Raises:
        ValueError: this is no list of prompts; the message names the first wrong ones.
    """
    is_one = isinstance(prompts, (str, Mapping)) or _is_one_of_ids(prompts)
    found = [prompts] if is_one else _listed(prompts, "prompts")
    _check("prompt", found, lambda prompt: _wrong_prompt(prompt, has_tokenizer))
    return found


def prompts_of(prompts: Any, prompt_token_ids: Any) -> Any:
    """Returns the prompts of a call that may give token ids in place of them, as in older versions of vLLM.

    Raises:
        ValueError: neither is given.
    """
    if prompt_token_ids is not None:
        return prompt_token_ids
    if prompts is None:
        raise ValueError("prompts: got None, expected a list of prompts")
    return prompts


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


def generate_rows(prompts: Iterable[Any], params: Any) -> tuple[Iterator[GenerateRow], int]:
    """Returns the rows of prompts with their sampling parameters, and how many of them are encoded together.

    Args:
        params: as those of `params_list`; a list has one for each prompt.

    Raises:
        ValueError: the parameters are something else; later, there are fewer or more of them than prompts.
    """
    is_one = is_one_params(params)
    pairs = zip(prompts, checked_params(params), strict=not is_one)
    rows = (GenerateRow(i, i, prompt, one) for i, (prompt, one) in enumerate(pairs))
    return rows, rows_at_once(prompts) if is_one else rows_at_once(prompts, params)


def params_list(params: Any, num_prompts: int) -> list[SamplingParams]:
    """Returns a list with the sampling parameters of each prompt, as copies that no caller changes.

    Args:
        params: None, `SamplingParams` or a mapping with its fields for all prompts, or an iterable with one for each.

    Raises:
        ValueError: this is something else, or a list of another length.
    """
    if is_one_params(params):
        return [_taken(params)] * num_prompts
    found = _listed(params, "sampling_params")
    _check("sampling_params", found, _wrong_params)
    if len(found) != num_prompts:
        raise ValueError(f"got {len(found)} sampling_params for {num_prompts} prompts, expected as many")
    copies: dict[int, SamplingParams] = {}
    for place, one in enumerate(found):
        if id(one) not in copies:
            copies[id(one)] = _taken(one, f"sampling_params {place}: ")
    return [copies[id(one)] for one in found]


def checked_params(params: Any) -> Iterator[SamplingParams]:
    """Returns sampling parameters: without end where they are for all prompts, else one for each prompt.

    Those for all prompts are copied at once, and the others when their prompt is read.

    Raises:
        ValueError: one is something else.
    """
    return repeat(_taken(params)) if is_one_params(params) else _copies(params)


def _copies(params: Iterable[Any]) -> Iterator[SamplingParams]:
    """Yields a copy of each. Raises ValueError where one is something else."""
    last = copy = None
    for index, one in enumerate(params):
        if reason := _wrong_params(one):
            raise ValueError(f"sampling_params {index}: got {reprlib.repr(one)}, {reason}")
        if one is not last or one != copy:  # rows often share theirs; a caller may change it in between
            last, copy = one, _taken(one, f"sampling_params {index}: ")
        assert copy is not None
        yield copy


def is_one_params(params: Any) -> bool:
    """Whether this is for all prompts: None, `SamplingParams`, or a mapping with its fields.

    Raises:
        ValueError: this is text.
    """
    if isinstance(params, str):
        raise ValueError("sampling_params: got a text, expected SamplingParams(...), or a list of them")
    return params is None or isinstance(params, (SamplingParams, Mapping))


def _taken(params: SamplingParams | Mapping[str, Any] | None, where: str = "") -> SamplingParams:
    """A copy of sampling parameters that nobody changes. An error's message begins with `where`."""
    if isinstance(params, Mapping) and not all(isinstance(name, str) for name in params):
        raise ValueError(f"{where}sampling_params: got the names {reprlib.repr(list(params))}, expected fields' names")
    try:
        return params.clone() if isinstance(params, SamplingParams) else SamplingParams(**(params or {}))
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error


def is_several(continuation: Any) -> bool:
    """Whether this is a list of continuations. An empty list is one continuation, without tokens."""
    if not isinstance(continuation, (list, tuple)):
        return False
    first = [*continuation, 0][0]
    return isinstance(first, (str, list, tuple)) or getattr(first, "ndim", 0) > 0


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


def _is_one_of_ids(prompts: Any) -> bool:
    """Whether this is one prompt of token ids: a list of integers, or an array [T]."""
    if isinstance(prompts, (list, tuple)):
        return bool(prompts) and type(prompts[0]) is int and _is_ids(prompts)
    return getattr(prompts, "ndim", 0) == 1 and _is_ids(prompts)


def _wrong_params(params: Any) -> str | None:
    if isinstance(params, SamplingParams) or (
        isinstance(params, Mapping) and all(isinstance(key, str) for key in params)
    ):
        return None
    return "expected SamplingParams(...), or a mapping with its fields"


def _wrong_prompt(prompt: Any, has_tokenizer: bool) -> str | None:
    """Returns why this is no prompt; None where it is one."""
    value, is_text = prompt, isinstance(prompt, str)
    if isinstance(prompt, Mapping):
        key = next((key for key in PROMPT_KEYS if key in prompt), None)
        if key is None:
            return f"expected a mapping with one of the keys {', '.join(PROMPT_KEYS)}"
        if media := next((name for name in _MEDIA if prompt.get(name)), None):
            return f"expected text or token ids: {media} cannot be read"
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
    value = plain(value)
    return isinstance(value, (list, tuple)) and all(isinstance(message, Mapping) for message in value)


def _is_ids(value: Any) -> bool:
    """Whether this is a list of integers, of any size."""
    if type(value) is list and set(map(type, value)) <= {int}:  # what most callers give
        return True
    if (array := id_array(value)) is not None:
        return array.ndim == 1 and array.dtype.kind in "iu"
    value = plain(value)
    if isinstance(value, (str, bytes, bytearray)) or not isinstance(value, Sequence):
        return False
    return set(map(type, value)) <= {int} or all(map(is_integer, value))
