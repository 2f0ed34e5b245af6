"""The registry of weight formats: the names that the setting `quantization` takes, and the module of each format.

A new weight format is one module in this folder with a `FORMAT`, and one entry in the table below. This module imports
no torch, so that a job file can be checked without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ...errors import ConfigurationError, one_of

if TYPE_CHECKING:
    from .weight_format import WeightFormat

_MODULES: dict[str | None, str] = {None: "linear", "int8": "mm8_linear", "w8a8": "w8a8_linear"}
"""Name of a weight format → the module of this folder whose `FORMAT` it is. None is the dense format."""

QUANTIZATIONS: tuple[str, ...] = tuple(name for name in _MODULES if name is not None)
"""The names of all weight formats but the dense one, whose name is None (null in a job file)."""


def check_quantization(quantization: str | None) -> None:
    """Raises ConfigurationError where no weight format has this name."""
    if quantization not in tuple(_MODULES):  # a tuple, as a wrong value may have no hash
        expected = one_of(["null", *map(repr, QUANTIZATIONS)])
        raise ConfigurationError(f"got {quantization!r}, expected {expected}", setting="quantization")


def weight_format(quantization: str | None) -> WeightFormat:
    """The weight format of a name; None is the dense format.

    Raises:
        ConfigurationError: no weight format has this name.
    """
    check_quantization(quantization)
    found: WeightFormat = import_module(f"{__package__}.{_MODULES[quantization]}").FORMAT
    return found
