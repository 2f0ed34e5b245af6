"""RWKV-7: a matrix state from which each token removes its key's old value; and the variant with DeepEmbed."""

from __future__ import annotations

import math
import re
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import OpSpec, OpTable
from .architecture import LayerState, RecurrenceCost, Refusal
from .blocks import SHIFT_LERP, Norm, head_norm, widened
from .files.rwkv7_layouts import LAYOUTS
from .matrices.low_rank import LOW_RANK, LowRank
from .matrices.product import LINEAR, Activation, Linear, sigmoid
from .matrices.projection import PROJECT, Projection
from .matrix_state import TIME_STATE, MatrixStateArchitecture
from .random_weights import LAYER_NORMS, PROJECTIONS, Numbers, RandomWeights, Recipe, matrix, norms, shares
from .rows import Index, Rows
from .schema import LAYER, LN0, LN_X, TOP, Schema, Shapes
from .weights import StoredPair, Weights

MAX_LOG_DECAY = math.exp(-0.5)
"""The decay's logarithm is -MAX_LOG_DECAY * sigmoid(·): a channel keeps more than 0.545 of itself per token."""


class Head7(NamedTuple):
    """Per-channel parameters of a v7 time mix, float32, [A] unless another shape is given."""

    w0: Tensor
    """Added to the decay's low-rank output."""
    a0: Tensor
    """Added to the in-context rate's low-rank output."""
    v0: Tensor | None
    """Added to the value residual's low-rank output; None in layer 0."""
    k_k: Tensor
    """Scales the key of the removal, before its normalization."""
    k_a: Tensor
    """The degree to which the in-context rate scales the key that is written: 0 not at all, 1 fully."""
    r_k: Tensor
    """[H, N]: weight of the current token's own product."""
    norm: Norm
    eps: float


def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    g: Tensor,
    v_first: Tensor | None,
    v_gate: Tensor | None,
    head: Head7,
    state: Tensor,
    rows: Rows,
) -> Tensor:
    """Advance the RWKV-7 state of each row through its tokens, and read it out.

    For each head, with the state S of shape [K, V] (row = key channel, column = value channel), all vectors rows:

        d = exp(-e^{-1/2} sigmoid(w0 + w)),   α = sigmoid(a0 + a),   v ← v + (v_first - v) sigmoid(v0 + v_gate)
        κ = k * k_k / |k * k_k|,              k ← k * (1 + (α - 1) * k_a)
        S ← diag(d) S - (κ * α)^T (κ S) + k^T v,   y = r S
        out = (group_norm(y) + (Σ r * k * r_k) v) * g

    Args:
        r, k, v, g: [M, A], A = H * N.
        w, a: [M, A], low-rank outputs, before bias and nonlinearity.
        v_first: [M, A], layer 0's v; None in layer 0.
        v_gate: [M, A], low-rank output of the value residual; None in layer 0.
        state: [P, H, K, V] float32 or float16. **Updated in place** in the rows' slots.

    Returns:
        [M, A], dtype of `r`.
    """
    num_heads, size = head.r_k.shape

    def heads(x: Tensor) -> Tensor:
        return x.view(-1, num_heads, size)

    decay = heads(torch.exp(-MAX_LOG_DECAY * sigmoid(head.w0 + widened(w))))[..., None]
    rate = sigmoid(head.a0 + widened(a))
    key, value = widened(k), widened(v)
    if v_first is not None and v_gate is not None and head.v0 is not None:
        value = torch.lerp(value, widened(v_first), sigmoid(head.v0 + widened(v_gate)))
    removal = F.normalize(heads(key * head.k_k), dim=-1)
    key = key * (1 + (rate - 1) * head.k_a)
    r_, k_, v_ = heads(widened(r)), heads(key), heads(value)
    written = torch.stack((-removal * heads(rate), k_), dim=-1)
    out = torch.zeros_like(r_)

    def advance(tokens: Index, s: Tensor) -> None:
        removed = torch.matmul(removal[tokens][:, :, None], s)[:, :, 0]
        added = torch.stack((removed, v_[tokens]), dim=2).flatten(0, 1)
        s.mul_(decay[tokens])
        s.flatten(0, 1).baddbmm_(written[tokens].flatten(0, 1), added)
        out[tokens] = torch.matmul(r_[tokens][:, :, None], s)[:, :, 0]

    rows.scan((state,), advance)
    y = head_norm(out.flatten(1), head.norm, num_heads, head.eps)
    own = (r_ * k_ * head.r_k).sum(-1, keepdim=True) * v_
    return ((y + own.flatten(1)) * widened(g)).to(r.dtype)


class TimeMix(NamedTuple):
    """The recurrent half of a v7 layer."""

    norm: Norm
    mix: Tensor
    """[6, C]: share of the previous token, for r, k, v, w, a, g."""
    head: Head7
    projection: Projection
    """Matrices: receptance, key and value. Low-rank pairs: decay, in-context rate, gate and, but for layer 0, value
    residual."""
    output: Linear


class DeepEmbed(NamedTuple):
    """A per-token gate on the channel mix's hidden layer, of rank R."""

    table: Tensor
    """[V, R * R]: a square matrix for each token of the vocabulary."""
    factors: LowRank
    """One pair, s1 [C → R] and s2 [R → F]."""
    s0: Tensor
    """[F]."""


class ChannelMix(NamedTuple):
    """The feed-forward half of a v7 layer."""

    norm: Norm
    mix: Tensor
    """[1, C]."""
    key: Linear
    value: Linear
    gate: DeepEmbed | None = None
    """None in a model without DeepEmbed."""


_LAYER: Shapes = {
    **LAYER,
    **LN_X,
    **{"att.x_" + c: "C" for c in "rwkvag"},
    **{f"att.{c}0": "A" for c in "wav"},
    **{f"att.{c}1": ("C", f"R{c}") for c in "wavg"},
    **{f"att.{c}2": (f"R{c}", "A") for c in "wavg"},
    "att.k_k": "A",
    "att.k_a": "A",
    "att.r_k": ("H", "N"),
    "ffn.x_k": "C",
}
_MIXED = "rkvwag"
"""The uses of the interpolations, in the order of `TimeMix.mix`."""
_ACTIVATION: dict[str, Activation | None] = {"w": "tanh", "a": None, "g": "sigmoid", "v": None}
"""The activation between the two factors of each low-rank pair."""
_NOT_IN_FIRST = frozenset({"att.v0", "att.v1", "att.v2"})


def _random_low_rank(letter: str, has_bias: bool = True) -> Recipe:
    """The distributions of a low-rank pair and of the vector that is added to its output."""
    bias: Recipe = {f"att.{letter}0": Numbers(is_row=True)} if has_bias else {}
    return {**bias, f"att.{letter}1": Numbers(over=("C",)), f"att.{letter}2": Numbers(over=(f"R{letter}",))}


def published_sizes(C: int) -> dict[str, int]:
    """The sizes of published models that follow from the width C."""

    def rank(size: float) -> int:
        return max(32, round(size / 32) * 32)

    decay = rank(1.8 * C**0.5)
    return {"F": 4 * C, "Rw": decay, "Ra": decay, "Rv": rank(1.3 * C**0.5), "Rg": rank(0.6 * C**0.8)}


_RANDOM_LAYER: Recipe = {
    **LAYER_NORMS,
    **shares("att.x_", "rwkvag"),
    **_random_low_rank("w"),
    **_random_low_rank("a"),
    **_random_low_rank("v"),
    **_random_low_rank("g", has_bias=False),
    "att.k_k": Numbers(0.1, 0.7, is_row=True),
    "att.k_a": Numbers(0.1, 1.0, is_row=True),
    "att.r_k": Numbers(0.3),
    **PROJECTIONS,
    **norms("att.ln_x"),
    **shares("ffn.x_", "k"),
    **matrix("ffn.key"),
    **matrix("ffn.value", over="F", gain=0.5),
}


class Rwkv7(MatrixStateArchitecture):
    """RWKV-7 (Goose)."""

    name = "rwkv7"
    ops: ClassVar[tuple[OpSpec, ...]] = (SHIFT_LERP, LINEAR, LOW_RANK, PROJECT, OpSpec("wkv7", wkv7))
    schema = Schema(TOP, _LAYER, not_in_first=_NOT_IN_FIRST, first_only=LN0, initial_state=TIME_STATE)

    hugging_face = LAYOUTS
    refused = (
        Refusal(
            "RWKV-8 (ROSA)",
            re.compile(r"\.rosa\.|rosa_qkv"),
            "whose state is the history of all tokens; rwkv_batch keeps a state of fixed size for each sequence, so use"
            " a v4, v5, v6, v7 or v7 DeepEmbed model",
        ),
        Refusal(
            "a model with attention, or a hybrid of RWKV and attention",
            re.compile(r"\.(self_attn|attn)\.q_proj\."),
            "whose key/value cache grows with every token; rwkv_batch keeps a state of fixed size for each sequence, so"
            " use a v4, v5, v6, v7 or v7 DeepEmbed model",
        ),
        Refusal(
            "RWKV-7b (DeepEmbed attention)",
            re.compile(r"^qkv|\.qkv\."),
            "whose key/value cache grows with every token; rwkv_batch keeps a state of fixed size for each sequence, so"
            " use a v4, v5, v6, v7 or v7 DeepEmbed model",
        ),
    )

    layers: list[tuple[TimeMix, ChannelMix]]

    def load_layer(self, weights: Weights, i: int) -> tuple[TimeMix, ChannelMix]:
        return self._load_time_mix(weights, i), self._load_channel_mix(weights, i)

    def _load_time_mix(self, weights: Weights, i: int) -> TimeMix:
        p = f"blocks.{i}.att."
        return TimeMix(
            norm=weights.norm(f"blocks.{i}.ln1"),
            mix=weights.vectors(*(p + "x_" + c for c in _MIXED)),
            head=Head7(
                w0=weights.float_vector(p + "w0"),
                a0=weights.float_vector(p + "a0"),
                v0=weights.float_vector(p + "v0") if i else None,
                k_k=weights.float_vector(p + "k_k"),
                k_a=weights.float_vector(p + "k_a"),
                r_k=weights.tensor(p + "r_k", torch.float32),
                norm=weights.norm(p + "ln_x", torch.float32),
                eps=self.ln_x_eps,
            ),
            projection=weights.projection(
                [p + f"{name}.weight" for name in ("receptance", "key", "value")],
                *(
                    StoredPair(_MIXED.index(c), _ACTIVATION[c], weights.tensor(f"{p}{c}1"), weights.tensor(f"{p}{c}2"))
                    for c in ("wagv" if i else "wag")
                ),
            ),
            output=weights.linear(p + "output.weight"),
        )

    def _load_channel_mix(self, weights: Weights, i: int) -> ChannelMix:
        p = f"blocks.{i}.ffn."
        return ChannelMix(
            norm=weights.norm(f"blocks.{i}.ln2"),
            mix=weights.vectors(p + "x_k"),
            key=weights.linear(p + "key.weight"),
            value=weights.linear(p + "value.weight"),
        )

    def layer(
        self, i: int, x: Tensor, first: Tensor | None, token_ids: Tensor, state: LayerState, rows: Rows, ops: OpTable
    ) -> Tensor:
        """`first` is layer 0's v, [M, A]."""
        time_mix, channel_mix = self.layers[i]
        first = self._time_mix(x, first, time_mix, state, rows, ops)
        self._channel_mix(x, channel_mix, token_ids, state, rows, ops)
        return first

    @staticmethod
    def _time_mix(x: Tensor, v_first: Tensor | None, p: TimeMix, s: LayerState, rows: Rows, ops: OpTable) -> Tensor:
        """Adds to x in place; returns layer 0's v."""
        _, _, mixed = ops.shift_lerp(x, p.norm, p.mix, s.att_shift, rows)
        (r, k, v), (w, a, g, *v_gate) = ops.project(mixed, p.projection, ops)
        y = ops.wkv7(r, w, k, v, a, g, v_first, v_gate[0] if v_gate else None, p.head, s.wkv, rows)
        p.output(y, out=x)
        return v if v_first is None else v_first

    @staticmethod
    def _channel_mix(x: Tensor, p: ChannelMix, token_ids: Tensor, s: LayerState, rows: Rows, ops: OpTable) -> None:
        """Adds to x in place."""
        _, _, (xk,) = ops.shift_lerp(x, p.norm, p.mix, s.ffn_shift, rows)
        p.value(p.key(xk, activation="squared_relu"), out=x)

    random_weights = RandomWeights(_RANDOM_LAYER, published_sizes)
    recurrence_cost = RecurrenceCost(operations=7, vectors=8)


def deep_embed(normed: Tensor, token_ids: Tensor, p: DeepEmbed) -> Tensor:
    """The gate of DeepEmbed: ((z s1) E[token]) s2 + s0, with the token's own square matrix E[token] of `p.table`.

    Args:
        normed: z, [M, C]: the input of the channel mix, before the token shift.
        token_ids: [M] int64.

    Returns:
        [M, F], dtype of `normed`.
    """
    (pair,) = p.factors.pairs
    rank = pair.down.out_features
    low = torch.bmm(pair.down(normed)[:, None], p.table[token_ids].view(-1, rank, rank))[:, 0]
    return pair.up(low) + p.s0


class Rwkv7DeepEmbed(Rwkv7):
    """RWKV-7 with DeepEmbed: the channel mix is gated by a low-rank product that depends on the token itself."""

    name = "rwkv7-deepembed"
    ops = (*Rwkv7.ops, OpSpec("deep_embed", deep_embed, optional=True))
    schema = Schema(
        top=TOP,
        layer={
            **_LAYER,
            "ffn.s_emb.weight": ("V", "RR"),
            "ffn.s_emb_x.weight": ("RR", "C"),
            "ffn.s1": ("C", "R"),
            "ffn.s2": ("R", "F"),
            "ffn.s0": "F",
        },
        not_in_first=_NOT_IN_FIRST,
        first_only=LN0,
        initial_state=TIME_STATE,
    )

    @classmethod
    def refine_sizes(cls, sizes: dict[str, int]) -> str | None:
        if sizes["RR"] != sizes["R"] ** 2:
            return f"ffn.s_emb.weight has {sizes['RR']} columns, expected {sizes['R']} squared"
        return super().refine_sizes(sizes)

    def _load_channel_mix(self, weights: Weights, i: int) -> ChannelMix:
        p = f"blocks.{i}.ffn."
        embedding = self.embedding.to(weights.device, weights.dtype)
        gate = DeepEmbed(
            table=weights.tensor(p + "s_emb.weight") + F.linear(embedding, weights.tensor(p + "s_emb_x.weight")),
            factors=weights.low_rank(
                StoredPair(0, None, weights.tensor(p + "s1"), weights.tensor(p + "s2")), op="deep_embed"
            ),
            s0=weights.vector(p + "s0"),
        )
        return super()._load_channel_mix(weights, i)._replace(gate=gate)

    @staticmethod
    def _channel_mix(x: Tensor, p: ChannelMix, token_ids: Tensor, s: LayerState, rows: Rows, ops: OpTable) -> None:
        """Adds to x in place."""
        normed, _, (xk,) = ops.shift_lerp(x, p.norm, p.mix, s.ffn_shift, rows, keep_parts=True)
        assert normed is not None and p.gate is not None
        gate = ops.deep_embed(normed, token_ids, p.gate)
        p.value(p.key(xk, activation="squared_relu", gate=gate), out=x)

    random_weights = RandomWeights(
        {
            **_RANDOM_LAYER,
            "ffn.s_emb.weight": Numbers(0.3, over=("R",)),
            "ffn.s_emb_x.weight": Numbers(0.3, over=("R", "C")),
            "ffn.s1": Numbers(over=("R",)),
            "ffn.s2": Numbers(over=("F",)),
            "ffn.s0": Numbers(0.1, 1.0, is_row=True),
        },
        lambda C: {**published_sizes(C), "R": 32, "RR": 32 * 32},
    )


ARCHITECTURES = (Rwkv7, Rwkv7DeepEmbed)
