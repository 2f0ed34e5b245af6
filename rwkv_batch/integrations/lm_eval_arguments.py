"""The model arguments of the lm-evaluation-harness's model `rwkv_batch`: their names, their checks, and conventions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from ..errors import ConfigurationError
from ..text.chat import ChatSettings

ROLLING_LENGTHS = {"window": 2048, "chunks": 1024}
"""Way of scoring documents → tokens of a piece by default: that of the harness's Hugging Face backend for RWKV, and
that of uncheatable-eval."""
HARNESS_DEVICE = "cuda:0"
"""The device that the harness's command line names where its user names none."""
THINK_END = "</think>"
"""The text that ends the thinking of a G1 model."""
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\r": "\r"}


@dataclass(frozen=True)
class Conventions:
    """How requests become token ids, and completions answers. Every field changes numbers, and is in the results.

    Args:
        add_bos_token: put token 0 before every sequence that does not start with it.
        prefix: a text before every sequence in place of token 0; None is none.
        max_length: tokens that the model may read for one request; None is no limit.
        rolling: "window", "full" or "chunks": how documents are scored.
        rolling_length: tokens of a window or a chunk; None takes `max_length`, or `ROLLING_LENGTHS`.
        max_gen_toks: limit of a completion, in tokens, where the task sets none.
        think_end_token: the text that ends a model's thinking; a completion starts after it.

    Raises:
        ConfigurationError: a value is wrong.
    """

    add_bos_token: bool = True
    prefix: str | None = None
    max_length: int | None = None
    rolling: str = "window"
    rolling_length: int | None = None
    max_gen_toks: int = 256
    think_end_token: str | None = None

    def __post_init__(self) -> None:
        if self.rolling not in ("window", "full", "chunks"):
            raise ConfigurationError(f"rolling: got {self.rolling!r}, expected 'window', 'full' or 'chunks'")
        if not isinstance(self.add_bos_token, bool):
            raise ConfigurationError(f"add_bos_token: got {self.add_bos_token!r}, expected True or False")
        for name, least in (("max_length", 2), ("rolling_length", 2), ("max_gen_toks", 1)):
            value = getattr(self, name)
            is_integer = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if not is_integer and (value is not None or name == "max_gen_toks"):
                other = "" if name == "max_gen_toks" else ", or None"
                raise ConfigurationError(f"{name}: got {value!r}, expected an integer from {least}{other}")
        for name in ("prefix", "think_end_token"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ConfigurationError(f"{name}: got {value!r}, expected a text, or None")
        if self.rolling == "full" and self.rolling_length is not None:
            raise ConfigurationError(f"rolling_length: got {self.rolling_length}, expected None beside rolling=full")

    @property
    def piece_length(self) -> int | None:
        """Tokens of a window or a chunk of a document; None where a document is read as a whole."""
        default = ROLLING_LENGTHS.get(self.rolling)
        return None if default is None else self.rolling_length or self.max_length or default

    def describe(self) -> dict[str, Any]:
        """The conventions as they are applied, in plain JSON."""
        applied = {"add_bos_token": self.add_bos_token and self.prefix is None, "rolling_length": self.piece_length}
        return {**asdict(self), **applied}


def unescaped(text: Any) -> Any:
    """A text from a command line: \\n, \\t and \\r in it become a newline, a tab and a carriage return."""
    if isinstance(text, str):
        for escape, character in _ESCAPES.items():
            text = text.replace(escape, character)
    return text


def think_mode(think: str | None, enable_thinking: Any, template_args: Any) -> str:
    """The setting `think` of the chat format that the arguments ask for.

    Args:
        think: the argument `think`; None is none.
        enable_thinking: the harness's name: True is "open", False is "fake".
        template_args: the argument `chat_template_args`, a mapping or its JSON, which may hold `enable_thinking`.

    Raises:
        ConfigurationError: a value is wrong, or two of them contradict.
    """
    given = _template_args(template_args)
    if enable_thinking is not None:
        given = {**given, "enable_thinking": enable_thinking}
    if (wanted := given.get("enable_thinking")) is None:
        return think or "none"
    if not isinstance(wanted, bool):
        raise ConfigurationError(f"enable_thinking: got {wanted!r}, expected True or False")
    mode = "open" if wanted else "fake"
    if think not in (None, mode):
        raise ConfigurationError(f"think: got {think!r} beside enable_thinking={wanted}, which is think={mode}")
    return mode


def _template_args(value: Any) -> Mapping[str, Any]:
    expected = 'expected a mapping such as {"enable_thinking": true}'
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ConfigurationError(f"chat_template_args: got {value!r}, {expected}") from error
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"chat_template_args: got {value!r}, {expected}")
    if others := value.keys() - {"enable_thinking"}:
        raise ConfigurationError(f"chat_template_args: got {sorted(others)}, expected only enable_thinking")
    return value


def conventions_of(given: Mapping[str, Any]) -> Conventions:
    """The conventions that model arguments name.

    Raises:
        ConfigurationError: a value is wrong.
    """
    values = {field.name: given[field.name] for field in fields(Conventions) if field.name in given}
    values["prefix"] = unescaped(values.get("prefix"))
    if values.get("think_end_token") is None and _think(given) == "open":
        values["think_end_token"] = THINK_END
    return Conventions(**values)


def chat_settings_of(given: Mapping[str, Any]) -> ChatSettings:
    """The settings of the chat format that model arguments name.

    Raises:
        ConfigurationError: a value is wrong.
    """
    return ChatSettings(given.get("chat_format", "auto"), _think(given), given.get("chat_template"))


def _think(given: Mapping[str, Any]) -> str:
    return think_mode(given.get("think"), given.get("enable_thinking"), given.get("chat_template_args"))


def check_own(given: Mapping[str, Any]) -> None:
    """Checks the arguments that are not those of `LLM`.

    Raises:
        ConfigurationError: a value is wrong, or there is no model.
    """
    pretrained, model, seed = given.get("pretrained"), given.get("model"), given.get("seed")
    if (pretrained is None) == (model is None):
        raise ConfigurationError(
            f"pretrained: got {pretrained!r} and model={model!r}, expected one of them, as in pretrained=model.pth"
        )
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise ConfigurationError(f"seed: got {seed!r}, expected an integer, or None for the harness's --seed")
    conventions_of(given)
    chat_settings_of(given)


def engine_device(device: str | None, strategy: str | None) -> str:
    """The argument `device` of `LLM`. The harness's default is no choice beside a strategy, and without CUDA."""
    is_default = device == HARNESS_DEVICE and (strategy is not None or not torch.cuda.is_available())
    return "auto" if device is None or is_default else device


def merged(model_args: Mapping[str, Any], harness: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of a model: those of `--model_args`, and of the harness's own options where the former lack them.

    Args:
        model_args: the arguments that the user gave for the model.
        harness: the harness's `batch_size`, `max_batch_size` and `device`; None values are left out.
    """
    return {**{name: value for name, value in (harness or {}).items() if value is not None}, **model_args}
