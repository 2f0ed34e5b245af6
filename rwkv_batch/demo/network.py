"""RWKV-7 for training, in plain PyTorch, with the tensor names and shapes of the published `.pth` files.

Sizes: B rows, T tokens of a row, C = H * N channels, H heads of N = 64, L layers, F channel-mix width, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_SIZE = 64
CHUNK = 16
"""Tokens of a chunk of the recurrence. The factor exp(-log decay) of a chunk is below e^9.8, since 16 exp(-1/2) <
9.8."""
LOG_DECAY_FLOOR = -math.exp(-0.5)
GROUP_NORM_EPS = 64e-5


class LayerState(NamedTuple):
    """The state of a layer: the last input of each mix, [B, C], and the matrices [B, H, N (key), N (value)]."""

    att_shift: Tensor
    ffn_shift: Tensor
    wkv: Tensor


def wkv7(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Run the RWKV-7 recurrence over T tokens, chunk by chunk, with matrix products only.

    For each head, with row vectors and the state S of shape [N (key), N (value)]:

        S_t = diag(w_t) S_{t-1} + b_tᵀ (a_t S_{t-1}) + k_tᵀ v_t        y_t = r_t S_t

    In a chunk, each u_t = a_t S_{t-1} depends on the chunk's first state S and on the u before it. This is a triangular
    system of linear equations. Its solution turns the chunk into S' = transfer S + gain and y = query S + local, so
    that only the computation of S' is sequential.

    Args:
        r, k, v, a, b: [B, T, H, N], float32. T is a multiple of CHUNK.
        log_w: [B, T, H, N], float32. Log of the decay, in (-exp(-1/2), 0).
        state: [B, H, N, N], float32. The state before the first token.

    Returns:
        y [B, T, H, N], and the state after the last token.
    """
    rows, tokens, heads, size = r.shape

    def chunks(x: Tensor) -> Tensor:  # [T / CHUNK, B, H, CHUNK, N]
        return x.view(rows, tokens // CHUNK, CHUNK, heads, size).permute(1, 0, 3, 2, 4)

    log_decay = chunks(log_w).cumsum(-2)
    grow = torch.exp(-log_decay)
    a_from_start = chunks(a) * torch.exp(log_decay - chunks(log_w))
    r_from_start = chunks(r) * torch.exp(log_decay)
    writes = torch.cat([chunks(b) * grow, chunks(k) * grow], -2)
    v = chunks(v)

    scores = torch.cat([a_from_start, r_from_start], -2) @ writes.mT * _causal_mask(r.device)
    (a_b, a_k), (r_b, r_k) = (torch.split(half, CHUNK, -1) for half in torch.split(scores, CHUNK, -2))
    solve = _inverse_of_one_minus(a_b)
    u_from_state = solve @ a_from_start
    u_local = solve @ (a_k @ v)

    total_decay = torch.exp(log_decay[..., -1:, :])
    writes_at_end = (writes * total_decay).mT
    transfer = writes_at_end[..., :CHUNK] @ u_from_state + torch.diag_embed(total_decay.squeeze(-2))
    gain = writes_at_end @ torch.cat([u_local, v], -2)
    starts = []
    for chunk_transfer, chunk_gain in zip(transfer.unbind(), gain.unbind(), strict=True):
        starts.append(state)
        state = chunk_transfer @ state + chunk_gain

    y = (r_from_start + r_b @ u_from_state) @ torch.stack(starts) + r_b @ u_local + r_k @ v
    return y.permute(1, 0, 3, 2, 4).reshape(rows, tokens, heads, size), state


def _causal_mask(device: torch.device) -> Tensor:
    """[2 CHUNK, 2 CHUNK] of 0 and 1: `a` reads the writes of earlier tokens, `r` those of its own token too."""
    ones = torch.ones(CHUNK, CHUNK, device=device)
    return torch.cat([ones.tril(-1), ones.tril()]).repeat(1, 2)


def _inverse_of_one_minus(x: Tensor) -> Tensor:
    """(1 - x)⁻¹ of a strictly lower triangular x: the finite sum 1 + x + x² + …, doubled in length by each product."""
    power, inverse = x, torch.eye(CHUNK, device=x.device) + x
    for _ in range(CHUNK.bit_length() - 2):
        power = power @ power
        inverse = inverse + inverse @ power
    return inverse


def shifted(x: Tensor, previous: Tensor) -> Tensor:
    """x [B, T, C] shifted by one token: `previous` [B, C], then all tokens but the last."""
    return torch.cat([previous.unsqueeze(1), x[:, :-1]], 1)


class TimeMix(nn.Module):
    """The time mix of RWKV-7, in the place of attention: reads and writes a matrix state for each head."""

    x_r: nn.Parameter
    x_w: nn.Parameter
    x_k: nn.Parameter
    x_v: nn.Parameter
    x_a: nn.Parameter
    x_g: nn.Parameter
    w1: nn.Parameter
    w2: nn.Parameter
    a1: nn.Parameter
    a2: nn.Parameter
    g1: nn.Parameter
    g2: nn.Parameter
    v1: nn.Parameter  # v1 and v2: not in the first layer
    v2: nn.Parameter

    def __init__(self, layer: int, layers: int, width: int, ranks: dict[str, int]) -> None:
        super().__init__()
        depth = layer / max(layers - 1, 1)  # 0 at the bottom, 1 at the top
        ramp = torch.arange(width) / width  # 0 .. 1 over the channels
        heads = width // HEAD_SIZE
        for name, power in {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}.items():
            setattr(self, f"x_{name}", _vector(1 - ramp ** (power * (1 - layer / layers))))

        # Initial decays reach from almost none to a memory of two tokens. Higher layers have more slow channels.
        self.w0 = _vector(-6 + 6.5 * ramp ** (1 + depth**0.3))
        self.a0 = _vector(torch.zeros(width))
        self.k_k = _vector(torch.full((width,), 0.85))
        self.k_a = _vector(torch.ones(width))
        self.r_k = nn.Parameter(torch.zeros(heads, HEAD_SIZE))
        low_rank = ["w", "a", "g"]
        if layer > 0:
            self.v0 = _vector(torch.full((width,), 0.7))
            low_rank.append("v")
        for name in low_rank:
            setattr(self, f"{name}1", nn.Parameter(torch.zeros(width, ranks[name])))
            setattr(self, f"{name}2", nn.Parameter(_orthogonal(ranks[name], width, gain=0.1)))

        self.receptance = _linear(width, width, gain=0.5)
        self.key = _linear(width, width, gain=0.1)
        self.value = _linear(width, width, gain=0.5)
        self.output = _linear(width, width, gain=0.0)
        self.ln_x = nn.GroupNorm(heads, width, eps=GROUP_NORM_EPS)
        nn.init.constant_(self.ln_x.weight, ((1 + layer) / layers) ** 0.7)

    def forward(self, x: Tensor, shift: Tensor, state: Tensor, v_first: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the mix's output [B, T, C], the state after the last token, and the first layer's values."""
        rows, tokens, width = x.shape
        split = (rows, tokens, width // HEAD_SIZE, HEAD_SIZE)
        delta = shifted(x, shift) - x
        xr, xw, xk, xv, xa, xg = (
            torch.addcmul(x, delta, mix) for mix in (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g)
        )
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        log_w = LOG_DECAY_FLOOR * torch.sigmoid(self.w0 + torch.tanh(xw @ self.w1) @ self.w2)
        rate = torch.sigmoid(self.a0 + xa @ self.a1 @ self.a2)
        gate = torch.sigmoid(xg @ self.g1) @ self.g2
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.v0 + xv @ self.v1 @ self.v2)
        removal = F.normalize((k * self.k_k).view(split), dim=-1)
        k = k * (1 + (rate - 1) * self.k_a)

        with torch.autocast(x.device.type, enabled=False):
            r, log_w, k, v, rate = (t.float().view(split) for t in (r, log_w, k, v, rate))
            y, state = wkv7(r, log_w, k, v, -removal, removal * rate, state)
            normed = self.ln_x(y.reshape(-1, width)).view(split)
            y = normed + (r * k * self.r_k).sum(-1, keepdim=True) * v
        return self.output(y.view_as(x) * gate), state, v_first


class ChannelMix(nn.Module):
    """Squared-ReLU feed-forward with a token shift."""

    def __init__(self, layer: int, layers: int, width: int, hidden: int) -> None:
        super().__init__()
        self.x_k = _vector(1 - (torch.arange(width) / width) ** ((1 - layer / layers) ** 4))
        self.key = _linear(width, hidden, gain=1.0)
        self.value = _linear(hidden, width, gain=0.0)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        key = self.key(torch.addcmul(x, shifted(x, shift) - x, self.x_k))
        value: Tensor = self.value(torch.relu(key) ** 2)
        return value


class Block(nn.Module):
    """A layer. The first layer also normalizes the embedding (`ln0`)."""

    def __init__(self, layer: int, layers: int, width: int, hidden: int, ranks: dict[str, int]) -> None:
        super().__init__()
        self.ln0 = nn.LayerNorm(width) if layer == 0 else nn.Identity()
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.att = TimeMix(layer, layers, width, ranks)
        self.ffn = ChannelMix(layer, layers, width, hidden)

    def forward(self, x: Tensor, state: LayerState, v_first: Tensor | None) -> tuple[Tensor, LayerState, Tensor]:
        x = self.ln0(x)
        att_in = self.ln1(x)
        mixed, wkv, v_first = self.att(att_in, state.att_shift, state.wkv, v_first)
        x = x + mixed
        ffn_in = self.ln2(x)
        x = x + self.ffn(ffn_in, state.ffn_shift)
        return x, LayerState(att_in[:, -1], ffn_in[:, -1], wkv), v_first


class Network(nn.Module):
    """The model: token ids [B, T] and a state → logits [B, T, V] and the state after the tokens."""

    def __init__(self, vocab: int, layers: int, width: int, hidden: int, ranks: dict[str, int]) -> None:
        super().__init__()
        self.emb = nn.Embedding(vocab, width)
        # Small values: ln0 rescales them, so their directions change quickly at first.
        nn.init.uniform_(self.emb.weight, -1e-2, 1e-2)
        self.blocks = nn.ModuleList(Block(layer, layers, width, hidden, ranks) for layer in range(layers))
        self.ln_out = nn.LayerNorm(width)
        self.head = _linear(width, vocab, gain=0.5)

    def empty_state(self, rows: int) -> list[LayerState]:
        """The state before any token, for `rows` rows."""
        width = self.emb.embedding_dim
        device = self.emb.weight.device
        shift = torch.zeros(rows, width, device=device)
        wkv = torch.zeros(rows, width // HEAD_SIZE, HEAD_SIZE, HEAD_SIZE, device=device)
        return [LayerState(shift, shift, wkv) for _ in self.blocks]

    def forward(self, token_ids: Tensor, state: list[LayerState]) -> tuple[Tensor, list[LayerState]]:
        x = self.emb(token_ids)
        v_first, after = None, []
        for block, layer_state in zip(self.blocks, state, strict=True):
            x, layer_state, v_first = block(x, layer_state, v_first)
            after.append(layer_state)
        return self.head(self.ln_out(x)), after


def _vector(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.view(1, 1, -1))


def _orthogonal(rows: int, columns: int, gain: float) -> Tensor:
    return nn.init.orthogonal_(torch.empty(rows, columns), gain=gain)


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=False)
    if gain == 0:
        nn.init.zeros_(linear.weight)
    else:
        nn.init.orthogonal_(linear.weight, gain=gain)
    return linear
