"""ChatRWKV's strategy strings: which device, dtype and weight format each layer has.

    cuda:0 fp16i8 *12 -> cuda:1 bf16 -> cpu fp32

Parts follow one another; a part takes as many layers as it says, and those without a number share the rest. The head
(output norm and matrix) counts as one more layer, the last one. `*10+` keeps ten layers on the device and streams all
that no part takes through it: their matrices stay in host memory, and each is copied when its layer is about to run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import ConfigurationError

EXAMPLES = "'cpu fp32', 'cuda fp16i8 *12 -> cpu fp32' or 'cuda fp16 *10+'"
_DEVICE = re.compile(r"cuda(:\d+)?|cpu|mps|dml")
_QUANTIZATIONS = {"i8": "int8"}
"""ChatRWKV's letters after a dtype → the name of the weight format."""
_DTYPE = re.compile(rf"(fp32|fp16|bf16)({'|'.join(_QUANTIZATIONS)})?")
_COUNT = re.compile(r"\*(\d+)(\+)?")


class Clause(NamedTuple):
    """One part of a strategy."""

    device: str
    dtype: str
    """fp32, fp16 or bf16."""
    quantization: str | None
    """A name of matrices/quantization.py; None is the dense format."""
    num_layers: int | None
    """None takes a share of what is left."""
    streams: bool


class Share(NamedTuple):
    """What one layer got."""

    part: Clause
    is_streamed: bool


def parse(strategy: str) -> list[Clause]:
    """The parts of a strategy.

    Raises:
        ConfigurationError: it is malformed; the message says which part, why, and what a right one looks like.
    """
    parts = [_parse_clause(text.strip(), number, strategy) for number, text in enumerate(strategy.split("->"), 1)]
    if sum(part.streams for part in parts) > 1:
        raise _error(strategy, "only one part can stream the rest of the layers", len(parts), "*N+ stands twice")
    return parts


def _parse_clause(text: str, number: int, strategy: str) -> Clause:
    words = text.split()
    if not words:
        raise _error(strategy, "a device and a dtype", number, "it is empty")
    if not _DEVICE.fullmatch(words[0]):
        raise _error(strategy, "cuda, cuda:N, cpu, mps or dml", number, f"the device is {words[0]!r}")
    dtype = _DTYPE.fullmatch(words[1]) if len(words) > 1 else None
    if dtype is None:
        found = f"the dtype is {words[1]!r}" if len(words) > 1 else "there is no dtype"
        raise _error(strategy, "fp32, fp16, bf16, or one of them with i8", number, found)
    count = _COUNT.fullmatch(words[2]) if len(words) > 2 else None
    if len(words) > 3 or (len(words) > 2 and count is None):
        raise _error(strategy, "*N or *N+ after the dtype, and no more", number, f"it ends with {words[-1]!r}")
    layers, plus = (int(count[1]), bool(count[2])) if count else (None, False)
    return Clause(words[0], dtype[1], _QUANTIZATIONS.get(dtype[2]), layers, plus)


def _error(strategy: str, expected: str, number: int, found: str) -> ConfigurationError:
    return ConfigurationError(
        f"got {strategy!r}; in part {number}, {found}, expected {expected}; right are {EXAMPLES}", setting="strategy"
    )


def distribute(parts: Sequence[Clause], num_layers: int) -> list[Share]:
    """Give each layer, and the head after them, its part, by ChatRWKV's rules.

    Returns:
        num_layers + 1 shares.
    """
    total = num_layers + 1
    counts: list[int] = []
    for part in parts:
        counts.append(min(part.num_layers or 0, total - sum(counts)))
    left = total - sum(counts)
    streaming = next((i for i, part in enumerate(parts) if part.streams), None)
    if streaming is None:
        free = [i for i, part in enumerate(parts) if part.num_layers is None]
        for done, i in enumerate(free):
            counts[i] = left // (len(free) - done)
            left -= counts[i]
        counts[-1] += left
    shares = []
    for i, (part, count) in enumerate(zip(parts, counts, strict=True)):
        shares += [Share(part, is_streamed=False)] * count
        if i == streaming:
            shares += [Share(part, is_streamed=True)] * left
    return shares
