"""ChatRWKV's strategy strings: the device, dtype and weight format of each layer.

    cuda:0 fp16i8 *12 -> cuda:1 bf16 -> cpu fp32

Each clause takes the next layers: `*12` takes twelve, and clauses without a number share the remaining layers. The head
(output norm and matrix) counts as the last layer. A clause with `*10+` takes ten layers, and streams the layers that no
clause takes: their matrices stay in host memory, and are copied to the device before each run of the layer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ..dtypes import SHORT_NAMES
from ..errors import ConfigurationError

EXAMPLES = "'cpu fp32', 'cuda fp16i8 *12 -> cpu fp32' or 'cuda fp16 *10+'"
_DEVICE = re.compile(r"cuda(:\d+)?|cpu|mps|dml")
_QUANTIZATIONS = {"i8": "int8"}
"""ChatRWKV's letters after a dtype → the name of the weight format."""
_DTYPE = re.compile(rf"({'|'.join(SHORT_NAMES)})({'|'.join(_QUANTIZATIONS)})?")
_COUNT = re.compile(r"\*(\d+)(\+)?")


class Clause(NamedTuple):
    """A clause of a strategy; messages call it a part."""

    device: str
    dtype: str
    """fp32, fp16 or bf16."""
    quantization: str | None
    """A name of matrices/quantization.py; None is the dense format."""
    num_layers: int | None
    """None takes a share of the remaining layers."""
    streams: bool
    """The clause ends with "+": the layers that no clause takes are streamed through its device."""


class Share(NamedTuple):
    """The clause that a layer belongs to, and how."""

    clause: Clause
    is_streamed: bool


def parse(strategy: str) -> list[Clause]:
    """The clauses of a strategy.

    Raises:
        ConfigurationError: the strategy is malformed; the message says which part, why, and gives correct examples.
    """
    clauses = [_parse_clause(text.strip(), number, strategy) for number, text in enumerate(strategy.split("->"), 1)]
    if sum(clause.streams for clause in clauses) > 1:
        raise _error(strategy, "only one part can stream the rest of the layers", len(clauses), "*N+ stands twice")
    return clauses


def _parse_clause(text: str, number: int, strategy: str) -> Clause:
    """The clause of a text; number and strategy are for messages."""
    words = text.split()
    if not words:
        raise _error(strategy, "a device and a dtype", number, "it is empty")
    if not _DEVICE.fullmatch(words[0]):
        raise _error(strategy, "cuda, cuda:N, cpu, mps or dml", number, f"the device is {words[0]!r}")
    dtype = _DTYPE.fullmatch(words[1]) if len(words) > 1 else None
    if dtype is None:
        found = f"the dtype is {words[1]!r}" if len(words) > 1 else "there is no dtype"
        raise _error(strategy, f"{', '.join(SHORT_NAMES)}, or one of them with i8", number, found)
    count = _COUNT.fullmatch(words[2]) if len(words) > 2 else None
    if len(words) > 3 or (len(words) > 2 and count is None):
        raise _error(strategy, "*N or *N+ after the dtype, and no more", number, f"it ends with {words[-1]!r}")
    layers, plus = (int(count[1]), bool(count[2])) if count else (None, False)
    return Clause(words[0], dtype[1], _QUANTIZATIONS.get(dtype[2]), layers, plus)


def _error(strategy: str, expected: str, number: int, found: str) -> ConfigurationError:
    return ConfigurationError(
        f"got {strategy!r}; in part {number}, {found}, expected {expected}; right are {EXAMPLES}", setting="strategy"
    )


def distribute(clauses: Sequence[Clause], num_layers: int) -> list[Share]:
    """Distribute the layers, and the head after them, over the clauses by ChatRWKV's rules.

    Where no clause streams, the clauses without a number share the remaining layers equally, later ones taking one
    more; layers that still remain go to the last clause.

    Returns:
        num_layers + 1 shares.
    """
    total = num_layers + 1
    counts: list[int] = []
    for clause in clauses:
        counts.append(min(clause.num_layers or 0, total - sum(counts)))
    left = total - sum(counts)
    streaming = next((i for i, clause in enumerate(clauses) if clause.streams), None)
    if streaming is None:
        free = [i for i, clause in enumerate(clauses) if clause.num_layers is None]
        for done, i in enumerate(free):
            counts[i] = left // (len(free) - done)
            left -= counts[i]
        counts[-1] += left
    shares = []
    for i, (clause, count) in enumerate(zip(clauses, counts, strict=True)):
        shares += [Share(clause, is_streamed=False)] * count
        if i == streaming:
            shares += [Share(clause, is_streamed=True)] * left
    return shares


def devices_named(device: str, strategy: str | None) -> list[str]:
    """The devices that the settings of an engine name, such as ["auto"] or ["cuda", "cpu"].

    Args:
        device: "auto", or a device such as "cuda:1".
        strategy: replaces `device` where it is given.

    Raises:
        ConfigurationError: the strategy is malformed.
    """
    return [device] if strategy is None else list(dict.fromkeys(clause.device for clause in parse(strategy)))
