"""Random weights: how tests and benchmarks draw a checkpoint of any version.

A version states the distribution of each tensor of a layer, in the order of the published files. Shapes come from the
version's schema. The distributions keep activations near unit variance, so that a random model is numerically like a
trained one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .schema import Shape, numeric_shape

if TYPE_CHECKING:
    from .architecture import Architecture

LOGIT_STD = 2.5
"""Standard deviation of the logits where no other is asked for."""


class Draw(NamedTuple):
    """The distribution and the shape of one tensor, in numbers."""

    shape: tuple[int, ...]
    std: float = 1.0
    mean: float = 0.0
    is_uniform: bool = False
    """Uniform in [0, 1) instead of normal."""

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draws the tensor, float32, on the generator's device."""
        if self.is_uniform:
            return torch.rand(self.shape, generator=generator, device=generator.device)
        x = torch.randn(self.shape, generator=generator, device=generator.device)
        return x.mul_(self.std).add_(self.mean)


class Numbers(NamedTuple):
    """The distribution of one tensor, with sizes in the letters of the schema."""

    std: float = 1.0
    mean: float = 0.0
    over: tuple[str, ...] = ()
    """Sizes: the standard deviation is divided by the square root of each."""
    is_uniform: bool = False
    """Uniform in [0, 1) instead of normal."""
    is_row: bool = False
    """A vector that the published files store as [1, 1, C]."""

    def draw(self, shape: Shape, sizes: Mapping[str, int]) -> Draw:
        """The distribution for these sizes."""
        axes = numeric_shape(shape, sizes)
        std = self.std
        for letter in self.over:
            std /= sizes[letter] ** 0.5
        return Draw((1, 1, *axes) if self.is_row else axes, std, self.mean, self.is_uniform)


Recipe = Mapping[str, Numbers]


def norms(*names: str) -> Recipe:
    """Scales and shifts of layer norms or group norms."""
    return {
        f"{name}.{part}": numbers
        for name in names
        for part, numbers in (("weight", Numbers(0.1, 1.0)), ("bias", Numbers(0.1)))
    }


def shares(prefix: str, letters: str) -> Recipe:
    """Shares of the token shift: one vector [1, 1, C] for each letter."""
    return {prefix + letter: Numbers(is_uniform=True, is_row=True) for letter in letters}


def matrix(name: str, over: str = "C", gain: float = 1.0) -> Recipe:
    """A matrix that keeps the variance of its input, times the square of `gain`; `over` is the input's size."""
    return {f"{name}.weight": Numbers(gain, over=(over,))}


LAYER_NORMS = norms("ln1", "ln2", "ln0")
PROJECTIONS: Recipe = {
    **matrix("att.receptance"),
    **matrix("att.key"),
    **matrix("att.value"),
    **matrix("att.output", over="A"),
}
GATED_FEED_FORWARD: Recipe = {
    **matrix("ffn.key"),
    **matrix("ffn.receptance"),
    **matrix("ffn.value", over="F", gain=0.5),
}
"""The channel mix of v4, v5 and v6."""


def usual_sizes(C: int) -> dict[str, int]:
    """The sizes of most published models that follow from the width C."""
    return {"F": 4 * C}


@dataclass(frozen=True)
class RandomWeights:
    """How to draw the weights of one version.

    Args:
        layer: tensors of a layer, without the `blocks.N.` prefix, in the order of the published files. Names are those
            of the version's schema, with one of each pair in `one_of`.
        published_sizes: width C → the sizes that published models of this width have: F and low-rank widths.
    """

    layer: Recipe
    published_sizes: Callable[[int], dict[str, int]] = usual_sizes


def complete_sizes(version: type[Architecture], *, C: int, **given: int) -> dict[str, int]:
    """All sizes of a checkpoint: the given ones, and for the others what published models of width C have.

    The version's `refine_sizes` adds those that follow from other sizes.

    Args:
        given: must hold L and V.

    Raises:
        ValueError: the sizes do not fit together, or a letter of the version's schema has no size.
    """
    sizes = {"C": C, "A": C, "N": 64, **version.random_weights.published_sizes(C), **given}
    sizes = {"H": sizes["A"] // sizes["N"], **sizes}
    if complaint := version.refine_sizes(sizes):
        raise ValueError(f"{version.name}: {complaint}")
    if unknown := sorted(version.schema.letters - sizes.keys()):
        raise ValueError(
            f"{version.name}: got no size for {', '.join(unknown)} of its schema; state it in `published_sizes` of its "
            "`random_weights` if it follows from C, or in `refine_sizes` if it follows from other sizes"
        )
    return sizes


def draws(version: type[Architecture], sizes: Mapping[str, int], logit_std: float = LOGIT_STD) -> dict[str, Draw]:
    """The tensors of a checkpoint and their distributions, in the order of the published files.

    Args:
        sizes: of every letter in the version's schema.
        logit_std: standard deviation of the logits. `ln_out` feeds unit variance to the rows of `head.weight`, whose
            norm this is.
    """
    schema = version.schema
    shapes = {**schema.top, **schema.first_only, **schema.layer}
    recipe = {"emb.weight": Numbers()}
    for i in range(sizes["L"]):
        left_out = schema.first_only.keys() if i else schema.not_in_first
        layer = {name: numbers for name, numbers in version.random_weights.layer.items() if name not in left_out}
        recipe.update({f"blocks.{i}.{name}": numbers for name, numbers in layer.items()})
    recipe |= {**norms("ln_out"), **matrix("head", gain=logit_std)}
    return {
        name: numbers.draw(shapes[name.split(".", 2)[2] if name.startswith("blocks.") else name], sizes)
        for name, numbers in recipe.items()
    }


def random_tensors(
    version: type[Architecture],
    sizes: Mapping[str, int],
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    logit_std: float = LOGIT_STD,
) -> dict[str, Tensor]:
    """Draws a whole checkpoint from one generator; the same seed draws the same numbers for every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return {name: draw.sample(generator).to(dtype) for name, draw in draws(version, sizes, logit_std).items()}
