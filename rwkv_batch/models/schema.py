"""The tensors of a version's checkpoint, with their shapes in letters. Matching the letters gives the sizes.

A shape is a string for a vector ("C": C elements, any number of extra axes of length 1) or a tuple for an exact shape
(("F", "C")). A letter binds to the first value seen; every later tensor must agree.

Other code reads L (layers), V, C, A and F of every model, and passes all letters to the kernels' own checks.
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
"""The tensors of every version outside its layers."""
LN0: Shapes = {"ln0.weight": "C", "ln0.bias": "C"}
"""The norm of the embedding, which checkpoints keep in layer 0."""
LAYER: Shapes = {
    **{f"ln{i}.{part}": "C" for i in (1, 2) for part in ("weight", "bias")},
    **{f"att.{name}.weight": ("A", "C") for name in ("key", "value", "receptance")},
    "att.output.weight": ("C", "A"),
    "ffn.key.weight": ("F", "C"),
    "ffn.value.weight": ("C", "F"),
}
"""The tensors of every version in each layer."""
FFN_RECEPTANCE: Shapes = {"ffn.receptance.weight": ("C", "C")}
LN_X: Shapes = {"att.ln_x.weight": "A", "att.ln_x.bias": "A"}
"""The group norm over heads, of versions with a matrix state."""

LAYER_TENSOR = re.compile(r"blocks\.(0|[1-9][0-9]{0,8})\.(.+)")
"""The canonical name of a layer's tensor: the number of the layer, and the tensor's name in it."""


@dataclass(frozen=True)
class Schema:
    """The tensors of one version.

    Args:
        top: tensors outside the layers.
        layer: tensors of each layer, without the `blocks.N.` prefix.
        one_of: pairs of layer tensors of which exactly one is there.
        not_in_first: layer tensors that layer 0 may lack (and ignores).
        first_only: layer tensors that only layer 0 has; absent where the embedding is already normalized.
        initial_state: layer tensors with the state that every sequence starts from, put there by state tuning. A
            checkpoint may lack them. A separate file may hold them.
    """

    top: Shapes
    layer: Shapes
    one_of: tuple[tuple[str, str], ...] = ()
    not_in_first: frozenset[str] = frozenset()
    first_only: Shapes = field(default_factory=dict)
    initial_state: Shapes = field(default_factory=dict)

    @property
    def letters(self) -> set[str]:
        """The sizes that the shapes of the tensors name."""
        shapes = [*self.top.values(), *self.layer.values(), *self.first_only.values()]
        axes = (axis for shape in shapes for axis in ((shape,) if isinstance(shape, str) else shape))
        return {axis for axis in axes if isinstance(axis, str)}

    def match(self, names: Iterable[str], shape_of: ShapeOf, embedding_is_normalized: bool = False) -> Match:
        """Compare the names and shapes of a checkpoint's tensors with this schema."""
        names = set(names)
        match, expected = self._match_names(names, embedding_is_normalized)
        for name, shape in expected.items():
            if name in names and (conflict := _bind(match.sizes, shape, shape_of(name))):
                match.misshapen.append(f"{name}: {conflict}")
        return match

    def match_names(self, names: Iterable[str], embedding_is_normalized: bool = False) -> Match:
        """Compare only the names of a checkpoint's tensors with this schema; of the sizes, only L is known."""
        return self._match_names(set(names), embedding_is_normalized)[0]

    def _match_names(self, names: set[str], embedding_is_normalized: bool) -> tuple[Match, dict[str, Shape]]:
        """The comparison of names, and every tensor that a checkpoint with this many layers may hold."""
        num_layers = len({m[1] for m in map(LAYER_TENSOR.fullmatch, names) if m})
        expected = dict(self.top)
        may_lack: set[str] = set()
        for i in range(num_layers):
            prefix = f"blocks.{i}."
            expected.update({prefix + name: shape for name, shape in {**self.layer, **self.initial_state}.items()})
            may_lack.update(prefix + name for name in self.initial_state)
            for pair in self.one_of:
                present = [name for name in pair if prefix + name in names]
                if len(present) == 1:
                    may_lack.update(prefix + name for name in pair)
        if num_layers:
            may_lack.update("blocks.0." + name for name in self.not_in_first)
            if not embedding_is_normalized:
                expected.update({"blocks.0." + name: shape for name, shape in self.first_only.items()})
        missing = sorted(name for name in expected if name not in names and name not in may_lack)
        return Match({"L": num_layers}, missing, sorted(names - expected.keys()), []), expected


def numeric_shape(shape: Shape, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A shape in letters → numbers."""
    axes = (shape,) if isinstance(shape, str) else shape
    return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in axes)


@dataclass(frozen=True)
class Match:
    """The result of comparing a checkpoint with a schema; a full match has all sizes and no complaints."""

    sizes: dict[str, int]
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]

    @property
    def num_complaints(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    @property
    def name_distance(self) -> tuple[int, int]:
        """How badly the names fit, smaller is better. A tensor that a version does not know outweighs missing ones."""
        return len(self.unexpected), len(self.missing)

    def describe(self) -> str:
        """One line that lists the complaints, empty for a match. Equal names of several layers are one item."""
        parts = []
        for word, items in (
            ("missing", _by_layer(self.missing)),
            ("not expected", _by_layer(self.unexpected)),
            ("shape", self.misshapen),
        ):
            if items:
                more = f" and {len(items) - 3} more" if len(items) > 3 else ""
                parts.append(f"{word}: {', '.join(item[:200] for item in items[:3])}{more}")
        return "; ".join(parts)


def _by_layer(names: Iterable[str]) -> list[str]:
    """The names, with those of one tensor in several layers as one item: blocks.N.att.r_k (12 layers)."""
    layers: dict[str, list[str]] = {}
    for name in names:
        match = LAYER_TENSOR.fullmatch(name)
        layers.setdefault(match[2] if match else name, []).append(name)
    return [
        found[0] if len(found) == 1 else f"blocks.N.{short} ({len(found)} layers)" for short, found in layers.items()
    ]


def _bind(sizes: dict[str, int], shape: Shape, actual: tuple[int, ...]) -> str | None:
    """Bind the letters of `shape` to the axes of `actual`; returns the disagreement, if there is one."""
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
