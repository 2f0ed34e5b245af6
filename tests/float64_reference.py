"""Every RWKV version in float64, one token at a time: the definition against which faster code is tested.

Sizes: B rows, L layers, C model width, A time-mix width (H heads of N channels), R low-rank width, V vocabulary.
A `wkv` state is [..., H, K, V]: row = key channel, column = value channel. The mixes of a block take

    layer   the block's tensors, named without "blocks.<i>."
    x       [B, C], the normalised input
    old     the block's state before this token, fields [B, ...]
    token   what all blocks share: "ids" [B], "embedding" [B, C] and, from v7's first block on, "v_first" [B, A]
    eps     of the normalisation of each head

and a time mix returns what goes into the output projection [B, A], and its new state fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]
TimeMix = Callable[[Tensors, Tensor, Tensors, Tensors, float], tuple[Tensor, Tensors]]


class Float64Model:
    """A model that advances B independent sequences by one token each.

    Args:
        tensors: a checkpoint of any version, under the names of the published files.
        ln_x_eps: epsilon of the normalisation of each head, v5 to v7.
    """

    def __init__(self, tensors: Tensors, ln_x_eps: float = 64e-5) -> None:
        self.weights = {name: tensor.double() for name, tensor in tensors.items()}
        self.ln_x_eps = ln_x_eps
        n_layer = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        self.layers = [self._block(f"blocks.{i}.") for i in range(n_layer)]
        self.embedding = layer_norm(self.weights["emb.weight"], self.layers[0], "ln0")
        self.time_mix = time_mix_of(self.layers[0])

    def _block(self, prefix: str) -> Tensors:
        return {name.removeprefix(prefix): weight for name, weight in self.weights.items() if name.startswith(prefix)}

    def initial_state(self, B: int) -> Tensors:
        """The state of B fresh sequences.

        Returns:
            "att_shift" and "ffn_shift" [L, B, C], and for v4 "aa", "bb", "pp" [L, B, A], for later versions
            "wkv" [L, B, H, K, V]: zeros, or the checkpoint's `time_state`.
        """
        first = self.layers[0]
        L, C, A = len(self.layers), self.embedding.shape[1], first["att.key.weight"].shape[0]

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(L, B, *shape, dtype=torch.float64)

        state = {"att_shift": zeros(C), "ffn_shift": zeros(C)}
        if self.time_mix is time_mix_4:
            return state | {"aa": zeros(A), "bb": zeros(A), "pp": zeros(A) - 1e30}
        H = num_heads(first)
        wkv = zeros(H, A // H, A // H)
        if "att.time_state" in first:
            # Stored as [H, V, K].
            wkv += torch.stack([layer["att.time_state"].transpose(1, 2) for layer in self.layers])[:, None]
        return state | {"wkv": wkv}

    def step(self, token_ids: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        """Feed one token to each row.

        Args:
            token_ids: [B], integers.
            state: what `initial_state` or an earlier step returned; left as it is.

        Returns:
            Logits [B, V], float64, and the new state.
        """
        x = self.embedding[token_ids]
        token = {"ids": token_ids, "embedding": x}
        new_states: list[Tensors] = []
        for i, layer in enumerate(self.layers):
            old = {name: field[i] for name, field in state.items()}
            att_x = layer_norm(x, layer, "ln1")
            y, memory = self.time_mix(layer, att_x, old, token, self.ln_x_eps)
            x = x + linear(y, layer["att.output.weight"])
            ffn_x = layer_norm(x, layer, "ln2")
            x = x + channel_mix(layer, ffn_x, old, token)
            new_states.append({"att_shift": att_x, "ffn_shift": ffn_x, **memory})
        logits = linear(layer_norm(x, self.weights, "ln_out"), self.weights["head.weight"])
        return logits, {name: torch.stack([new[name] for new in new_states]) for name in state}

    def sequence(
        self, token_ids: Tensor | Sequence[Sequence[int]], state: Tensors | None = None
    ) -> tuple[Tensor, Tensors]:
        """Feed T tokens to each row: token_ids [B, T] to logits [B, T, V] and the last state. None is a fresh state."""
        token_ids = torch.as_tensor(token_ids)
        state = self.initial_state(token_ids.shape[0]) if state is None else state
        logits: list[Tensor] = []
        for column in token_ids.unbind(1):
            step_logits, state = self.step(column, state)
            logits.append(step_logits)
        return torch.stack(logits, dim=1), state


def time_mix_of(layer: Tensors) -> TimeMix:
    """The time mix of a checkpoint, by the tensors of its first block."""
    if "att.r_k" in layer:
        return time_mix_7
    if "att.time_maa_x" in layer:
        return time_mix_6
    return time_mix_5 if "att.ln_x.weight" in layer else time_mix_4


def num_heads(layer: Tensors) -> int:
    """H of a block of v5, v6 or v7; each has one of these, and it starts with the heads."""
    return next(layer[name].shape[0] for name in ("att.r_k", "att.time_faaaa", "att.time_decay") if name in layer)


def split(x: Tensor, parts: int) -> Tensor:
    """x [B, A] to [B, parts, A / parts]."""
    return x.view(x.shape[0], parts, -1)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, C_in] times a weight stored as [C_out, C_in]. Low-rank pairs are stored the other way round."""
    return x @ weight.T


def lerp(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Token shift: v4 and v5 store the share of the present token, v6 and v7 that of the previous one."""
    return torch.lerp(start, end, share.flatten())


def layer_norm(x: Tensor, weights: Tensors, name: str) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weights[f"{name}.weight"], weights[f"{name}.bias"])


def head_norm(y: Tensor, layer: Tensors, eps: float) -> Tensor:
    """Normalise each head of y [B, H, N] on its own; returns [B, A]."""
    return F.group_norm(y.flatten(1), y.shape[1], layer["att.ln_x.weight"], layer["att.ln_x.bias"], eps)


def outer(k: Tensor, v: Tensor) -> Tensor:
    """[B, H, K] and [B, H, V] to [B, H, K, V]."""
    return k[..., :, None] * v[..., None, :]


def read(wkv: Tensor, r: Tensor) -> Tensor:
    """Sum wkv [B, H, K, V] over its key channels, weighted by r [B, H, K]; returns [B, H, V]."""
    return torch.einsum("bhkv,bhk->bhv", wkv, r)


def project(layer: Tensors, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Receptance, key and value, [B, A] each, of their shifted inputs "r", "k", "v"."""
    r = linear(inputs["r"], layer["att.receptance.weight"])
    k = linear(inputs["k"], layer["att.key.weight"])
    return r, k, linear(inputs["v"], layer["att.value.weight"])


def time_mix_4(layer: Tensors, x: Tensor, old: Tensors, token: Tensors, eps: float) -> tuple[Tensor, Tensors]:
    """y = sum_i e^(k_i + w age_i) v_i / sum_i e^(k_i + w age_i); both sums are kept divided by e^pp."""
    r, k, v = project(layer, {name: lerp(old["att_shift"], x, layer[f"att.time_mix_{name}"]) for name in "rkv"})
    decay, bonus = -layer["att.time_decay"].flatten().exp(), layer["att.time_first"].flatten()

    peak = torch.maximum(old["pp"], bonus + k)
    past, present = torch.exp(old["pp"] - peak), torch.exp(bonus + k - peak)
    y = (past * old["aa"] + present * v) / (past * old["bb"] + present)

    peak = torch.maximum(old["pp"] + decay, k)
    past, present = torch.exp(old["pp"] + decay - peak), torch.exp(k - peak)
    memory = {"aa": past * old["aa"] + present * v, "bb": past * old["bb"] + present, "pp": peak}
    return torch.sigmoid(r) * y, memory


def time_mix_5(layer: Tensors, x: Tensor, old: Tensors, token: Tensors, eps: float) -> tuple[Tensor, Tensors]:
    """The decay is one number a head in 5.0 and 5.1, one a channel in 5.2; 5.0 has no gate."""
    names = [name for name in "rkvg" if f"att.time_mix_{name}" in layer]
    inputs = {name: lerp(old["att_shift"], x, layer[f"att.time_mix_{name}"]) for name in names}
    decay = torch.exp(-layer["att.time_decay"].reshape(num_heads(layer), -1).exp())
    y, wkv = wkv_5(layer, inputs, decay, old["wkv"], eps)
    if "g" in inputs:
        y = y * F.silu(linear(inputs["g"], layer["att.gate.weight"]))
    return y, {"wkv": wkv}


def time_mix_6(layer: Tensors, x: Tensor, old: Tensors, token: Tensors, eps: float) -> tuple[Tensor, Tensors]:
    """As 5.2, with a decay and shares of the token shift that depend on the input."""
    probe = torch.tanh(lerp(x, old["att_shift"], layer["att.time_maa_x"]) @ layer["att.time_maa_w1"])
    offsets = torch.einsum("bjr,jrc->jbc", split(probe, 5), layer["att.time_maa_w2"])
    inputs = {
        name: torch.lerp(x, old["att_shift"], layer[f"att.time_maa_{name}"].flatten() + offset)
        for name, offset in zip("wkvrg", offsets, strict=True)
    }
    log_rate = torch.tanh(inputs["w"] @ layer["att.time_decay_w1"]) @ layer["att.time_decay_w2"]
    decay = torch.exp(-torch.exp(layer["att.time_decay"].flatten() + log_rate))
    y, wkv = wkv_5(layer, inputs, split(decay, num_heads(layer)), old["wkv"], eps)
    return y * F.silu(linear(inputs["g"], layer["att.gate.weight"])), {"wkv": wkv}


def wkv_5(layer: Tensors, inputs: Tensors, decay: Tensor, wkv: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y = r (S + u k^T v), S' = w S + k^T v, where u and the decay w ([B, H, K], or broadcast to it) scale the rows.

    Returns:
        y [B, A], normalised, and S' [B, H, K, V].
    """
    H = num_heads(layer)
    # `time_faaaa` is the bonus itself, the older `time_first` its logarithm.
    bonus = layer["att.time_faaaa"] if "att.time_faaaa" in layer else layer["att.time_first"].exp()
    r, k, v = (split(vector, H) for vector in project(layer, inputs))
    present = outer(k, v)
    y = read(wkv + bonus.reshape(H, -1, 1) * present, r)
    return head_norm(y, layer, eps), decay[..., None] * wkv + present


def time_mix_7(layer: Tensors, x: Tensor, old: Tensors, token: Tensors, eps: float) -> tuple[Tensor, Tensors]:
    """S' = w S - (a kk)^T (kk S) + k^T v, y = r S', where w scales the rows: S forgets part of what kk finds in it."""
    inputs = {name: lerp(x, old["att_shift"], layer[f"att.x_{name}"]) for name in "rwkvag"}

    def low_rank(name: str, activation: Callable[[Tensor], Tensor]) -> Tensor:
        return activation(inputs[name] @ layer[f"att.{name}1"]) @ layer[f"att.{name}2"]

    def rate(name: str, activation: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.sigmoid(layer[f"att.{name}0"].flatten() + low_rank(name, activation))

    r, k, v = project(layer, inputs)
    w = torch.exp(-math.exp(-0.5) * rate("w", torch.tanh))
    a = rate("a", torch.nn.Identity())
    if "v_first" in token:
        v = torch.lerp(v, token["v_first"], rate("v", torch.nn.Identity()))
    else:
        token["v_first"] = v
    kk = k * layer["att.k_k"].flatten()
    k = k * (1 + (a - 1) * layer["att.k_a"].flatten())

    r, w, k, v, a, kk = (split(vector, num_heads(layer)) for vector in (r, w, k, v, a, kk))
    kk = F.normalize(kk, dim=-1)
    wkv = w[..., None] * old["wkv"] - outer(a * kk, read(old["wkv"], kk)) + outer(k, v)
    bonus = (r * k * layer["att.r_k"]).sum(-1, keepdim=True) * v
    y = head_norm(read(wkv, r), layer, eps) + bonus.flatten(1)
    return y * low_rank("g", torch.sigmoid), {"wkv": wkv}


def channel_mix(layer: Tensors, x: Tensor, old: Tensors, token: Tensors) -> Tensor:
    """Squared ReLU, gated by a receptance before v7. Returns [B, C]."""
    if "ffn.time_mix_k" in layer:
        inputs = {name: lerp(old["ffn_shift"], x, layer[f"ffn.time_mix_{name}"]) for name in "rk"}
    elif "ffn.time_maa_k" in layer:
        inputs = {name: lerp(x, old["ffn_shift"], layer[f"ffn.time_maa_{name}"]) for name in "rk"}
    else:
        inputs = {"k": lerp(x, old["ffn_shift"], layer["ffn.x_k"])}
    hidden = torch.relu(linear(inputs["k"], layer["ffn.key.weight"])).square()
    if "ffn.s_emb.weight" in layer:
        hidden = hidden * deep_embedding(layer, x, token)
    y = linear(hidden, layer["ffn.value.weight"])
    return y * torch.sigmoid(linear(inputs["r"], layer["ffn.receptance.weight"])) if "r" in inputs else y


def deep_embedding(layer: Tensors, x: Tensor, token: Tensors) -> Tensor:
    """DeepEmbed's scale of each hidden channel: x, not shifted, goes through an [R, R] matrix of the token's own."""
    R = layer["ffn.s1"].shape[1]
    own = layer["ffn.s_emb.weight"][token["ids"]] + linear(token["embedding"], layer["ffn.s_emb_x.weight"])
    middle = torch.einsum("bi,bij->bj", x @ layer["ffn.s1"], own.view(-1, R, R))
    return middle @ layer["ffn.s2"] + layer["ffn.s0"].flatten()
