"""The facts that tests need of one variant of RWKV and cannot get from the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rwkv_batch.models.architecture import Architecture

Tensors = dict[str, Tensor]
TimeMix = Callable[[Tensors, Tensor, Tensors, Tensors, float], tuple[Tensor, Tensors]]
AdvanceToken = Callable[[Any, Tensors], tuple[Tensor, Tensors]]
ChannelMix = Callable[[Tensors, Tensor, Tensors, Tensors], Tensor]

KERNEL_PACKAGES = frozenset({"triton", "cuda", "cpu"})


@dataclass(frozen=True)
class Reference:
    """A layer in float64, one token at a time, written independently of the library.

    The functions take

        layer   the block's tensors, named without "blocks.<i>."
        x       [B, C], the normalized input
        old     the block's state before this token, fields [B, ...]
        token   what all blocks share: "ids" [B], "embedding" [B, C]; a block may add fields for the blocks after it
        eps     of the normalization of each head

    Args:
        initial: layer → the fields of its recurrent state in a fresh sequence, without the axis B.
        time_mix: called as time_mix(layer, x, old, token, eps). Returns the input of the output projection [B, A] and
            the new recurrent state.
        channel_mix: called as channel_mix(layer, x, old, token). Returns what is added to the residual stream [B, C].
    """

    initial: Callable[[Tensors], Tensors]
    time_mix: TimeMix
    channel_mix: ChannelMix


@dataclass(frozen=True)
class RwkvPackage:
    """How the `rwkv` package, the other oracle, serves a variant.

    Args:
        version: the package's own number of the version.
        switches: environment variables with which the package must be imported.
        fields: names of the tensors of a layer in its flat list of states, in their order.
        transposed: fields whose last two axes are stored the other way round.
    """

    version: float
    switches: Mapping[str, str]
    fields: tuple[str, ...]
    transposed: tuple[str, ...] = ()

    def named(self, flat_list: Sequence[Tensor]) -> Tensors:
        """One layer's tensors by name, in the layout of this project."""
        state = dict(zip(self.fields, flat_list, strict=True))
        return state | {name: state[name].transpose(-1, -2).contiguous() for name in self.transposed}


@dataclass(frozen=True)
class Variant:
    """One variant of RWKV as tests ask for it.

    Args:
        name: what tests call it, for example "5.2".
        architecture: the class under test.
        reference: the independent definition in float64.
        package: None where the `rwkv` package does not know the variant.
        sizes: letter → size, for letters that `make_checkpoint` has no argument for.
        has_own_width: the width A of the time mix may differ from C.
        kernels: kernel packages that serve the recurrence.
        launches: kernels that one layer of a decode step launches on a GPU.
        token_in_float64: op → function that advances one sequence by one token, for the tests of kernels. It is called
            with all arguments of the op but states and rows, and with the states of one sequence; it returns the output
            [A] and the new states.
    """

    name: str
    architecture: type[Architecture]
    reference: Reference
    package: RwkvPackage | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    has_own_width: bool = True
    kernels: frozenset[str] = KERNEL_PACKAGES
    launches: int = 0
    token_in_float64: Mapping[str, AdvanceToken] = field(default_factory=dict)
