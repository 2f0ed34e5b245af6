"""The model arguments of the lm-evaluation-harness's model `rwkv_batch`: their names, their checks, and conventions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from ..errors import ConfigurationError
from .chat_arguments import chat_settings_of, unescaped

ROLLING_LENGTHS = {"window": 2048, "chunks": 1024}
"""Way of scoring documents → tokens of a piece by default: that of the harness's Hugging Face backend for RWKV, and
that of uncheatable-eval."""
HARNESS_DEVICE = "cuda:0"
"""The device that the harness's command line names where its user names none."""


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
        think_end_token: the text that ends a model's thinking; a completion starts after it. None is "</think>" after
            a prompt of a chat format that begins to think, and otherwise none.

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


def conventions_of(given: Mapping[str, Any]) -> Conventions:
    """The conventions that model arguments name.

    Raises:
        ConfigurationError: a value is wrong.
    """
    values = {field.name: given[field.name] for field in fields(Conventions) if field.name in given}
    values["prefix"] = unescaped(values.get("prefix"))
    return Conventions(**values)


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


def engine_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments `device` and `max_batch_size` of `LLM` that follow from the adapter's and the harness's.

    The harness's default device is no choice beside a strategy, and without CUDA. A `batch_size` that is a number above
    1 is a number of slots.
    """
    device, batch_size = given.get("device"), given.get("batch_size")
    is_default = device == HARNESS_DEVICE and (given.get("strategy") is not None or not torch.cuda.is_available())
    slots = batch_size if isinstance(batch_size, int) and batch_size > 1 else None
    return {
        "device": "auto" if device is None or is_default else device,
        "max_batch_size": given.get("max_batch_size") or slots,
    }


def merged(model_args: Mapping[str, Any], harness: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of a model: those of `--model_args`, and of the harness's own options where the former lack them.

    Args:
        model_args: the arguments that the user gave for the model. `trust_remote_code` is left out: the harness adds it
            for its option of that name, which is about data sets.
        harness: the harness's `batch_size`, `max_batch_size` and `device`; None values are left out.
    """
    known = {name: value for name, value in (harness or {}).items() if value is not None}
    return {**known, **{name: value for name, value in model_args.items() if name != "trust_remote_code"}}
