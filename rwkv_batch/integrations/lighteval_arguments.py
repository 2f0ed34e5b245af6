"""The arguments of lighteval's model: from a class of the user, or from MODEL_NAME on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from ..errors import ConfigurationError
from ..sampling_params import SamplingParams

OPTION = "model arguments"
OWN_ARGUMENTS = ("add_bos_token", "use_chat_template", "chat_format", "think", "chat_template")
OF_LIGHTEVAL = ("generation_parameters", "system_prompt", "cache_dir")
"""Fields of lighteval's configuration of a model that the command line may name."""
MAX_TOKENS = 256
"""Limit of a completion if neither the task nor the user sets one."""
_START = "model_name="
_PARAMETERS = {
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "min_new_tokens": "min_tokens",
    "seed": "seed",
}
"""lighteval's name of a generation parameter → the field of `SamplingParams`."""
_TRANSLATED = ("temperature", "max_new_tokens", "stop_tokens")


class Given(NamedTuple):
    """What MODEL_NAME says.

    Args:
        model: the `model` argument of `LLM`.
        arguments: the adapter's own arguments, and other arguments of `LLM`.
        config: fields of lighteval's configuration of the model.
    """

    model: str
    arguments: dict[str, Any]
    config: dict[str, Any]


def given_in(name: str) -> Given:
    """Divides a MODEL_NAME: a model's file, or `model_name=FILE,name=value,...`, as lighteval's other models take.

    Raises:
        ConfigurationError: it is no such list.
    """
    if not name.startswith(_START):
        return Given(name, {}, {})
    pairs: dict[str, Any] = {}
    for item in _items(name):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ConfigurationError(
                f"{OPTION}: got {item!r}, expected name=value, as in model_name=model.pth,dtype=auto"
            )
        pairs[key.strip()] = _value(key.strip(), value)
    model = pairs.pop("model_name")
    config = {key: pairs.pop(key) for key in OF_LIGHTEVAL if key in pairs}
    return Given(str(model), pairs, config)


def _items(text: str) -> list[str]:
    """The items of a list with commas between them. Commas inside braces, brackets and quotes divide nothing."""
    items, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "{[") - (character in "}]")
        if character == "," and not depth and not quote:
            items.append("")
        else:
            items[-1] += character
    return items


def _value(name: str, text: str) -> Any:
    """The value of an argument, read as YAML; of a mapping, `name:value` needs no space."""
    if name == "model_name":
        return text
    if text.startswith("{"):
        text = _spaced(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{OPTION}: {name}: got {text!r}, expected a value in YAML") from error


def _spaced(text: str) -> str:
    """A mapping in YAML with a space after each colon outside of quotes."""
    spaced, quote = "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        spaced += ": " if character == ":" and not quote else character
    return spaced


def refuse_others(parameters: Any) -> None:
    """Raises ConfigurationError for a generation parameter that this model cannot follow.

    Args:
        parameters: lighteval's `GenerationParameters`.
    """
    for name in type(parameters).model_fields:
        value = getattr(parameters, name)
        if name not in _PARAMETERS and name not in _TRANSLATED and value is not None:
            raise ConfigurationError(
                f"generation_parameters.{name}: got {value!r}, expected none: this model has no such setting"
            )


def sampling_params(
    parameters: Any, doc: Any, chat_stop: tuple[str, ...] = (), chat_stop_ids: tuple[int, ...] = ()
) -> SamplingParams:
    """The sampling parameters of a document's completions.

    Args:
        parameters: lighteval's `GenerationParameters`.
        doc: lighteval's `Doc`.
        chat_stop, chat_stop_ids: what ends the model's turn in the chat format.

    Raises:
        ValueError: a value is out of range, or the document asks for what this model has not.
    """
    for name in ("images", "generation_grammar"):
        if getattr(doc, name, None) is not None:
            raise ValueError(f"{name}: the document {doc.id} of {doc.task_name} has it, expected none")
    chosen: Mapping[str, Any] = {ours: getattr(parameters, theirs) for theirs, ours in _PARAMETERS.items()}
    stop = [*(doc.stop_sequences or ()), *(parameters.stop_tokens or ()), *chat_stop]
    return SamplingParams(
        n=doc.num_samples or 1,
        temperature=parameters.temperature or 0.0,
        max_tokens=parameters.max_new_tokens or doc.generation_size or MAX_TOKENS,
        stop=list(dict.fromkeys(text for text in stop if text)),
        stop_token_ids=list(chat_stop_ids) or None,
        **{name: value for name, value in chosen.items() if value is not None},
    )
