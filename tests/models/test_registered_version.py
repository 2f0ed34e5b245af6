"""A version that is defined here: its facts are enough for every format, initial states and refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from checkpoints import write_checkpoint
from running import Session
from tolerances import assert_close
from torch import Tensor

from rwkv_batch import LLM, SamplingParams
from rwkv_batch.errors import CheckpointError
from rwkv_batch.models import architecture as architecture_module
from rwkv_batch.models.architecture import Architecture, LayerState, Refusal, StateField, register
from rwkv_batch.models.blocks import Norm, layer_norm
from rwkv_batch.models.files.checkpoint import Checkpoint, open_checkpoint
from rwkv_batch.models.files.hf_layouts import HfLayout, fla_layout, transformers_layout
from rwkv_batch.models.files.stored import LayerTargets, Restore, renamed
from rwkv_batch.models.matrices.product import LINEAR, Linear
from rwkv_batch.models.model import ModelFile
from rwkv_batch.models.rows import Index, Rows
from rwkv_batch.models.schema import LN0, TOP, Schema
from rwkv_batch.models.weights import Weights
from rwkv_batch.ops import OpSpec, OpTable

L, C, V = 2, 32, 257
TOKENS = [3, 1, 4, 1, 5]


def fading(k: Tensor, keep: Tensor, total: Tensor, rows: Rows) -> Tensor:
    """s ← keep * s + k, for each channel; returns s after every token."""
    out = torch.zeros_like(k)

    def advance(tokens: Index, s: Tensor) -> None:
        out[tokens] = s.mul_(keep).add_(k[tokens])

    rows.scan((total,), advance)
    return out


class FadingLayer(NamedTuple):
    norm: Norm
    keep: Tensor
    key: Linear


class Fading(Architecture):
    """A fading sum of keys."""

    name = "fading"
    ops = (LINEAR, OpSpec("fading", fading))
    schema = Schema(
        top=TOP,
        layer={"ln1.weight": "C", "ln1.bias": "C", "att.key.weight": ("C", "C"), "att.keep": "C"},
        first_only=LN0,
        initial_state={"att.total": ("C",)},
    )
    hugging_face: ClassVar[tuple[HfLayout, ...]] = (
        fla_layout(
            "fading",
            {**renamed({"attn.k_proj": "att.key"}), "attn.forget": (("att.keep", Restore(values=lambda x: 1 - x)),)},
            lambda config: config.get("eps"),
        ),
        transformers_layout("fading", {"retention": "keep"}),
    )
    chatrwkv: ClassVar[LayerTargets] = {"att.log_keep": (("att.keep", Restore(values=torch.exp)),)}
    refused = (Refusal("Fading-b", re.compile("memory"), "which remembers everything; use Fading"),)
    default_ln_x_eps = 3e-5

    layers: list[FadingLayer]

    @classmethod
    def state_fields(
        cls, sizes: Mapping[str, int], dtype: torch.dtype, state_dtype: torch.dtype
    ) -> tuple[StateField, ...]:
        return (StateField("total", (sizes["C"],), torch.float32),)

    def load_layer(self, weights: Weights, i: int) -> FadingLayer:
        p = f"blocks.{i}."
        return FadingLayer(
            weights.norm(p + "ln1"), weights.float_vector(p + "att.keep"), weights.linear(p + "att.key.weight")
        )

    def layer(
        self, i: int, x: Tensor, first: Tensor | None, token_ids: Tensor, state: LayerState, rows: Rows, ops: OpTable
    ) -> None:
        p = self.layers[i]
        x.add_(ops.fading(p.key(layer_norm(x, p.norm)), p.keep, state.total, rows))


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture_module, "_registered", [])
    register(Fading)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"emb.weight": (V, C), "head.weight": (V, C)}
    shapes |= {f"{name}.{part}": (C,) for name in ("ln_out", "blocks.0.ln0") for part in ("weight", "bias")}
    for i in range(L):
        names = ("ln1.weight", "ln1.bias", "att.keep")
        shapes |= {f"blocks.{i}.{name}": (C,) for name in names} | {f"blocks.{i}.att.key.weight": (C, C)}
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def states() -> dict[str, Tensor]:
    return {f"blocks.{i}.att.total": torch.randn(C, generator=torch.Generator().manual_seed(i)) for i in range(L)}


def expected_logits(tensors: dict[str, Tensor], states: dict[str, Tensor]) -> Tensor:
    """The logits [T, V] of `TOKENS`, in float64."""
    w = {name: tensor.double() for name, tensor in (tensors | states).items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (C,), w[f"{name}.weight"], w[f"{name}.bias"])

    x = norm(w["emb.weight"][TOKENS], "blocks.0.ln0")
    for i in range(L):
        keys = norm(x, f"blocks.{i}.ln1") @ w[f"blocks.{i}.att.key.weight"].t()
        total = w.get(f"blocks.{i}.att.total", torch.zeros(C).double())
        sums = []
        for key in keys:
            total = total * w[f"blocks.{i}.att.keep"] + key
            sums.append(total)
        x = x + torch.stack(sums)
    return norm(x, "ln_out") @ w["head.weight"].t()


def logits(path: Path, **settings: Any) -> Tensor:
    return Session(path, **settings).feed({1: TOKENS})[1]


def require_equal(checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> None:
    assert ModelFile.open(checkpoint).architecture is Fading
    assert checkpoint.names == tensors.keys()
    for name, tensor in tensors.items():
        assert_close(name, checkpoint.tensor(name), tensor, torch.float32)


def test_it_is_identified_and_runs(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = write_checkpoint(tensors, tmp_path / "model.pth")
    session = Session(path)
    assert session.model.ln_x_eps == Fading.default_ln_x_eps
    assert_close("logits", session.feed({1: TOKENS})[1], expected_logits(tensors, {}), torch.float32)
    (result,) = LLM(path, max_batch_size=2).generate(["abc"], SamplingParams(max_tokens=3, temperature=0.0))
    assert len(result.outputs[0].token_ids) == 3


def test_an_initial_state_inside_or_beside(
    tensors: dict[str, Tensor], states: dict[str, Tensor], tmp_path: Path
) -> None:
    without = write_checkpoint(tensors, tmp_path / "without.pth")
    inside = write_checkpoint(tensors | states, tmp_path / "inside.safetensors")
    beside = write_checkpoint(states, tmp_path / "states.pth")
    want = expected_logits(tensors, states)
    assert_close("inside", logits(inside), want, torch.float32)
    assert_close("beside", logits(without, init_state=beside), want, torch.float32)
    states["blocks.1.att.total"] = torch.zeros(C + 1)
    wrong = write_checkpoint(states, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match=rf"att.total \[{C + 1}\] .*expected blocks.N.att.total of shape \[{C}\]"):
        logits(without, init_state=wrong)
    del states["blocks.1.att.total"]
    partly = write_checkpoint(tensors | states, tmp_path / "partly.pth")
    with pytest.raises(CheckpointError, match=r"1 of 2 tensors blocks\.N\.att\.total, blocks\.0\.att\.total the first"):
        logits(partly)


def write_folder(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "fading", **config}))
    write_checkpoint(tensors, folder / "model.safetensors")
    return folder


def test_its_hugging_face_layouts(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """Both have the same `model_type`: the names decide."""
    theirs = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^blocks\.", "model.layers.", name).replace("att.key", "attn.k_proj")
        name = name.replace("ln1", "attn_norm").replace("ln0", "pre_norm").replace("ln_out", "model.norm")
        name = name.replace("emb.weight", "model.embeddings.weight").replace("head.weight", "lm_head.weight")
        theirs[name.replace("att.keep", "attn.forget")] = 1 - tensor if "keep" in name else tensor
    checkpoint = open_checkpoint(write_folder(tmp_path / "fla", theirs, {"eps": 2e-5}))
    require_equal(checkpoint, tensors)
    assert checkpoint.ln_x_eps == 2e-5

    theirs = {}
    for name, tensor in tensors.items():
        name = name.replace("emb.", "embeddings.").replace(".att.", ".attention.").replace("ln0", "pre_ln")
        theirs[name if "head" in name else f"rwkv.{name.replace('keep', 'retention')}"] = tensor
    checkpoint = open_checkpoint(write_folder(tmp_path / "transformers", theirs, {"eps": 2e-5}))
    require_equal(checkpoint, tensors)
    assert checkpoint.ln_x_eps is None


def test_its_form_converted_by_chatrwkv(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    del tensors["blocks.0.ln0.weight"], tensors["blocks.0.ln0.bias"]
    converted: dict[str, Any] = {"_strategy": "cpu fp32", "_version": "0.7", "_rescale_layer": 0}
    for name, tensor in tensors.items():
        if name.endswith(("key.weight", "head.weight")):
            tensor = tensor.t()
        converted[name.replace("keep", "log_keep")] = torch.log(tensor) if "keep" in name else tensor
    torch.save(converted, tmp_path / "model.pth")
    require_equal(open_checkpoint(tmp_path / "model.pth"), tensors)


def test_its_relatives_are_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = write_checkpoint(tensors | {"blocks.0.att.memory": torch.zeros(3)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="this is Fading-b, which remembers everything; use Fading"):
        ModelFile.open(open_checkpoint(path))
