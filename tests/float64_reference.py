"""Every version in float64, one token at a time: the independent definition against which faster code is tested.

The layers are in `tests/versions`, one module for each file of `rwkv_batch/models`. They stay out of these files: an
oracle that shares code with what it checks repeats its mistakes.

Sizes: B rows, L layers, C model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from versions import VARIANTS
from versions.float64_parts import layer_norm, linear
from versions.variant import Tensors


class Float64Model:
    """A model that advances B independent sequences by one token each.

    Args:
        version: one of `versions.VERSIONS`.
        tensors: a checkpoint of it, under the names of the published files.
        ln_x_eps: epsilon of the normalization of each head, v5 to v7.
    """

    def __init__(self, version: str, tensors: Tensors, ln_x_eps: float = 64e-5) -> None:
        self.reference = VARIANTS[version].reference
        self.weights = {name: tensor.double() for name, tensor in tensors.items()}
        self.ln_x_eps = ln_x_eps
        n_layer = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        self.layers = [self._block(f"blocks.{i}.") for i in range(n_layer)]
        self.embedding = layer_norm(self.weights["emb.weight"], self.layers[0], "ln0")

    def _block(self, prefix: str) -> Tensors:
        return {name.removeprefix(prefix): weight for name, weight in self.weights.items() if name.startswith(prefix)}

    def initial_state(self, B: int) -> Tensors:
        """The state of B fresh sequences.

        Returns:
            "att_shift" and "ffn_shift" [L, B, C], zeros, and the fields of the version's recurrence [L, B, ...].
        """
        fresh = [self.reference.initial(layer) for layer in self.layers]
        state = {name: torch.stack([each[name] for each in fresh]) for name in fresh[0]}
        state |= dict.fromkeys(("att_shift", "ffn_shift"), torch.zeros(len(fresh), self.embedding.shape[1]).double())
        return {name: field[:, None].repeat_interleave(B, dim=1) for name, field in state.items()}

    def step(self, token_ids: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        """Feeds one token to each row.

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
            y, memory = self.reference.time_mix(layer, att_x, old, token, self.ln_x_eps)
            x = x + linear(y, layer["att.output.weight"])
            ffn_x = layer_norm(x, layer, "ln2")
            x = x + self.reference.channel_mix(layer, ffn_x, old, token)
            new_states.append({"att_shift": att_x, "ffn_shift": ffn_x, **memory})
        logits = linear(layer_norm(x, self.weights, "ln_out"), self.weights["head.weight"])
        return logits, {name: torch.stack([new[name] for new in new_states]) for name in state}

    def sequence(
        self, token_ids: Tensor | Sequence[Sequence[int]], state: Tensors | None = None
    ) -> tuple[Tensor, Tensors]:
        """Feeds T tokens to each row.

        Args:
            token_ids: [B, T].
            state: None is a fresh state.

        Returns:
            Logits [B, T, V], and the last state.
        """
        token_ids = torch.as_tensor(token_ids)
        state = self.initial_state(token_ids.shape[0]) if state is None else state
        logits: list[Tensor] = []
        for column in token_ids.unbind(1):
            step_logits, state = self.step(column, state)
            logits.append(step_logits)
        return torch.stack(logits, dim=1), state
