"""Which tensors a version's checkpoint holds, with their shapes in letters; sizes are read by matching the letters.

A shape is a string for a vector ("C": C elements, any number of extra axes of length 1) or a tuple for an exact shape
(("F", "C")). Letters bind to the first value seen; every later tensor must agree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

Shape = str | tuple[str | int, ...]
Shapes = Mapping[str, Shape]
ShapeOf = Callable[[str], tuple[int, ...]]

TOP: Shapes = {"emb.weight": ("V", "C"), "ln_out.weight": "C", "ln_out.bias": "C", "head.weight": ("V", "C")}
"""What every version has outside its layers."""
LN0: Shapes = {"ln0.weight": "C", "ln0.bias": "C"}
"""The embedding's norm, kept in layer 0."""
LAYER: Shapes = {
    **{f"ln{i}.{part}": "C" for i in (1, 2) for part in ("weight", "bias")},
    **{f"att.{name}.weight": ("A", "C") for name in ("key", "value", "receptance")},
    "att.output.weight": ("C", "A"),
    "ffn.key.weight": ("F", "C"),
    "ffn.value.weight": ("C", "F"),
}
"""What every version has in each layer."""
FFN_RECEPTANCE: Shapes = {"ffn.receptance.weight": ("C", "C")}
LN_X: Shapes = {"att.ln_x.weight": "A", "att.ln_x.bias": "A", "att.time_state": ("H", "N", "N")}
"""The norm over heads of v5, v6 and v7, and the state that tuning may have put beside it."""
TIME_STATE = frozenset({"att.time_state"})

_LAYER = re.compile(r"^blocks\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Schema:
    """The tensors of one version.

    Args:
        top: tensors outside the layers.
        layer: tensors of each layer, without the `blocks.N.` prefix.
        optional: layer tensors that may be absent.
        one_of: pairs of layer tensors of which exactly one is there.
        not_in_first: layer tensors that layer 0 may lack (and ignores).
        first_only: layer tensors that only layer 0 has; absent where the embedding is already normalised.
    """

    top: Shapes
    layer: Shapes
    optional: frozenset[str] = frozenset()
    one_of: tuple[tuple[str, str], ...] = ()
    not_in_first: frozenset[str] = frozenset()
    first_only: Shapes = field(default_factory=dict)

    def match(self, names: Iterable[str], shape_of: ShapeOf, embedding_is_normalized: bool = False) -> Match:
        """Compare a checkpoint's tensors with this schema."""
        names = set(names)
        num_layers = 1 + max((int(m.group(1)) for m in map(_LAYER.match, names) if m), default=-1)
        expected = dict(self.top)
        may_lack: set[str] = set()
        for i in range(num_layers):
            prefix = f"blocks.{i}."
            expected.update({prefix + name: shape for name, shape in self.layer.items()})
            may_lack.update(prefix + name for name in self.optional)
            for pair in self.one_of:
                present = [name for name in pair if prefix + name in names]
                if len(present) == 1:
                    may_lack.update(prefix + name for name in pair)
        if num_layers:
            may_lack.update("blocks.0." + name for name in self.not_in_first)
            if not embedding_is_normalized:
                expected.update({"blocks.0." + name: shape for name, shape in self.first_only.items()})
        missing = sorted(name for name in expected if name not in names and name not in may_lack)
        unexpected = sorted(names - expected.keys())
        sizes: dict[str, int] = {"L": num_layers}
        misshapen = []
        for name, shape in expected.items():
            if name in names and (conflict := _bind(sizes, shape, shape_of(name))):
                misshapen.append(f"{name}: {conflict}")
        return Match(sizes, missing, unexpected, misshapen)


@dataclass(frozen=True)
class Match:
    """The outcome of comparing a checkpoint with a schema; a full match has sizes and no complaints."""

    sizes: dict[str, int]
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]

    @property
    def num_complaints(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def describe(self) -> str:
        """One line: what keeps this from matching."""
        parts = []
        for word, items in (("missing", self.missing), ("not expected", self.unexpected), ("shape", self.misshapen)):
            if items:
                more = f" and {len(items) - 3} more" if len(items) > 3 else ""
                parts.append(f"{word}: {', '.join(items[:3])}{more}")
        return "; ".join(parts)


def _bind(sizes: dict[str, int], shape: Shape, actual: tuple[int, ...]) -> str | None:
    """Bind the letters of `shape` to `actual`; returns what disagrees, if anything does."""
    if isinstance(shape, str):
        if actual and max(actual) != math.prod(actual):
            return f"is {list(actual)}, expected a vector [{shape}]"
        axes: tuple[str | int, ...] = (shape,)
        values: tuple[int, ...] = (math.prod(actual),)
    else:
        axes, values = shape, actual
        if len(axes) != len(values):
            return f"is {list(actual)}, expected [{', '.join(map(str, axes))}]"
    for axis, value in zip(axes, values, strict=True):
        expected = axis if isinstance(axis, int) else sizes.setdefault(axis, value)
        if value != expected:
            return f"is {list(actual)}, expected {axis} = {expected}"
    return None
