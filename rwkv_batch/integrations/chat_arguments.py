"""The model arguments of harness adapters that choose the chat format: their values, and errors that name them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import ConfigurationError
from ..text.chat import ChatSettings

_CHAT_SETTINGS = {"chat.format": "chat_format", "chat.think": "think", "chat.template": "chat_template"}
"""Name of a setting of the chat format in an error → the model argument."""
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\r": "\r"}


def chat_settings_of(given: Mapping[str, Any], of_model: ChatSettings | None = None) -> ChatSettings:
    """The settings of the chat format that model arguments name.

    Args:
        of_model: those of the `LLM`, which count where the arguments name none.

    Raises:
        ConfigurationError: a value is wrong.
    """
    base = of_model or ChatSettings()
    name, template = given.get("chat_format"), unescaped(given.get("chat_template"))
    is_other = name is not None or template is not None
    with argument_names():
        return ChatSettings(
            "auto" if name is None and is_other else name or base.format,
            think_of(given, base.think),
            template if is_other else base.template,
        )


def think_of(given: Mapping[str, Any], default: str = "none") -> str:
    """The setting `think` of the chat format: the argument `think`, or what `enable_thinking` means.

    Args:
        default: the setting where neither is given.

    Raises:
        ConfigurationError: a value is wrong, or the two contradict.
    """
    think, wanted = given.get("think"), template_args_of(given).get("enable_thinking")
    if wanted is None:
        return default if think is None else think
    mode = "open" if wanted else "fake"
    if think not in (None, mode):
        raise ConfigurationError(f"think: got {think!r} beside enable_thinking={wanted}, which is think={mode}")
    return mode


def template_args_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Names for a chat template that model arguments give: `chat_template_args`, and `enable_thinking`.

    Raises:
        ConfigurationError: a value is wrong.
    """
    value, expected = given.get("chat_template_args"), 'expected a mapping such as {"enable_thinking": true}'
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ConfigurationError(f"chat_template_args: got {value!r}, {expected}") from error
    if value is not None and not isinstance(value, Mapping):
        raise ConfigurationError(f"chat_template_args: got {value!r}, {expected}")
    found = dict(value or {})
    if given.get("enable_thinking") is not None:
        found["enable_thinking"] = given["enable_thinking"]
    thinking = found.get("enable_thinking", True)
    if not isinstance(thinking, bool):
        raise ConfigurationError(f"enable_thinking: got {thinking!r}, expected True or False")
    return found


@contextmanager
def argument_names(of_format: str = "chat_format") -> Iterator[None]:
    """Inside, errors about settings of the chat format name the model arguments.

    Args:
        of_format: where the user named the format.
    """
    try:
        yield
    except ConfigurationError as error:
        if error.setting not in _CHAT_SETTINGS:
            raise
        names = {**_CHAT_SETTINGS, "chat.format": of_format}
        raise ConfigurationError(str(error.args[0]), setting=names[error.setting]) from error


def unescaped(text: Any) -> Any:
    """A text from a command line: \\n, \\t and \\r in it become a newline, a tab and a carriage return."""
    if isinstance(text, str):
        for escape, character in _ESCAPES.items():
            text = text.replace(escape, character)
    return text
