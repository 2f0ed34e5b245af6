"""The facts of a version that is defined here are enough for every file format, initial states and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint
from float64_reference import Float64Model
from running import Session
from tolerances import assert_close
from torch import Tensor
from versions.toy_model import Toy

from rwkv_batch.errors import CheckpointError
from rwkv_batch.models import architecture as architecture_module
from rwkv_batch.models.architecture import Refusal, register
from rwkv_batch.models.files.checkpoint import Checkpoint, open_checkpoint
from rwkv_batch.models.files.hf_layouts import HfLayout, fla_layout, transformers_layout
from rwkv_batch.models.files.stored import ROW, LayerTargets, Restore, as_rows, renamed, row_of
from rwkv_batch.models.model import ModelFile
from rwkv_batch.models.schema import Schema

L, C = 2, 64
MATRICES = ("receptance", "key", "value", "output")
TOKENS = [3, 1, 4, 1, 5]


class Described(Toy):
    """The toy version with facts about its files."""

    name = "described"
    schema = Schema(
        Toy.schema.top, Toy.schema.layer, first_only=Toy.schema.first_only, initial_state={"att.total": "A"}
    )
    hugging_face: ClassVar[tuple[HfLayout, ...]] = (
        fla_layout(
            "toy",
            {
                **renamed({f"attn.{name[0]}_proj": f"att.{name}" for name in MATRICES}),
                **renamed({"ffn.key": "ffn.key", "ffn.value": "ffn.value"}),
                "attn.shares": tuple((f"att.share_{c}", row_of(i)) for i, c in enumerate("kvr")),
                "attn.decay": (("att.log_decay", Restore(values=torch.log)),),
                "ffn.share": (("ffn.share_k", ROW),),
            },
            lambda config: config.get("eps"),
        ),
        transformers_layout("toy", {"logarithm": "log_decay"}),
    )
    chatrwkv: ClassVar[LayerTargets] = {
        **as_rows(*(f"att.share_{c}" for c in "rkv"), "ffn.share_k"),
        "att.decay": (("att.log_decay", Restore(values=torch.log)),),
    }
    refused = (Refusal("the endless toy", re.compile("memory"), "which remembers everything; use the toy"),)
    default_ln_x_eps = 3e-5


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture_module, "_registered", [])
    register(Described)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return make_checkpoint("toy", n_layer=L, n_embd=C, n_ffn=96)


def logits(path: Path, **settings: Any) -> Tensor:
    return Session(path, **settings).feed({1: TOKENS})[1]


def require_equal(checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> None:
    """Asserts that a checkpoint has these tensors, up to rounding: a layout may store an exponential of a value."""
    assert ModelFile.open(checkpoint).architecture is Described
    assert checkpoint.names == tensors.keys()
    for name, tensor in tensors.items():
        assert checkpoint.shape(name) == tuple(tensor.shape), name
        assert_close(name, checkpoint.tensor(name), tensor, torch.float32)


def test_an_initial_state_inside_or_beside(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    without = write_checkpoint(tensors, tmp_path / "without.pth")
    assert Session(without).model.ln_x_eps == Described.default_ln_x_eps
    totals = torch.randn(L, C, generator=torch.Generator().manual_seed(0))
    states = {f"blocks.{i}.att.total": total for i, total in enumerate(totals)}
    reference = Float64Model("toy", tensors)
    fresh = reference.initial_state(1)
    plain, _ = reference.sequence([TOKENS], fresh)
    tuned, _ = reference.sequence([TOKENS], fresh | {"total": totals[:, None].double()})
    inside = write_checkpoint(tensors | states, tmp_path / "inside.safetensors")
    beside = write_checkpoint(states, tmp_path / "states.pth")
    assert_close("no state", logits(without), plain[0], "float32", 20)
    assert_close("inside", logits(inside), tuned[0], "float32", 20)
    assert_close("beside", logits(without, init_state=beside), tuned[0], "float32", 20)


def test_an_initial_state_that_does_not_fit(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    without = write_checkpoint(tensors, tmp_path / "without.pth")
    states = {f"blocks.{i}.att.total": torch.zeros(C + i) for i in range(L)}
    wrong = write_checkpoint(states, tmp_path / "wrong.pth")
    with pytest.raises(
        CheckpointError, match=rf"1.att.total \[{C + 1}\] .*expected blocks.N.att.total of shape \[{C}\]"
    ):
        logits(without, init_state=wrong)
    del states["blocks.1.att.total"]
    partly = write_checkpoint(tensors | states, tmp_path / "partly.pth")
    with pytest.raises(CheckpointError, match=r"1 of 2 tensors blocks\.N\.att\.total, blocks\.0\.att\.total the first"):
        logits(partly)


def write_folder(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "toy", "eps": 2e-5}))
    write_checkpoint(tensors, folder / "model.safetensors")
    return folder


def test_the_names_in_a_folder_choose_its_layout(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """Both layouts have the same `model_type`."""
    theirs = {}
    for name, tensor in tensors.items():
        name = name.replace("emb.", "embeddings.").replace(".att.", ".attention.").replace(".ffn.", ".feed_forward.")
        name = name.replace("ln0", "pre_ln").replace("log_decay", "logarithm")
        theirs[name if name.startswith("head.") else f"rwkv.{name}"] = tensor
    checkpoint = open_checkpoint(write_folder(tmp_path / "transformers", theirs))
    require_equal(checkpoint, tensors)
    assert checkpoint.ln_x_eps is None

    ours = dict(tensors)
    theirs = {"lm_head.weight": ours.pop("head.weight"), "model.embeddings.weight": ours.pop("emb.weight")}
    for i in range(L):
        att, attn = f"blocks.{i}.att.", f"model.layers.{i}.attn."
        theirs[f"{attn}shares"] = torch.stack([ours.pop(f"{att}share_{c}").view(-1) for c in "kvr"])
        theirs[f"{attn}decay"] = torch.exp(ours.pop(f"{att}log_decay"))
        for name in MATRICES:
            theirs[f"{attn}{name[0]}_proj.weight"] = ours.pop(f"{att}{name}.weight")
        theirs[f"model.layers.{i}.ffn.share"] = ours.pop(f"blocks.{i}.ffn.share_k").view(-1)
    for name, tensor in ours.items():
        name = name.replace("blocks.", "model.layers.").replace("ln_out", "model.norm").replace("ln0", "pre_norm")
        theirs[name.replace("ln1", "attn_norm").replace("ln2", "ffn_norm")] = tensor
    checkpoint = open_checkpoint(write_folder(tmp_path / "fla", theirs))
    require_equal(checkpoint, tensors)
    assert checkpoint.ln_x_eps == 2e-5


def test_the_form_converted_by_chatrwkv(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    del tensors["blocks.0.ln0.weight"], tensors["blocks.0.ln0.bias"]
    converted: dict[str, Any] = {"_strategy": "cpu fp32", "_version": "0.7", "_rescale_layer": 0}
    for name, tensor in tensors.items():
        if "log_decay" in name:
            converted[name.replace("log_decay", "decay")] = torch.exp(tensor)
        else:
            converted[name] = tensor.t() if tensor.dim() == 2 and name != "emb.weight" else tensor.squeeze()
    torch.save(converted, tmp_path / "model.pth")
    require_equal(open_checkpoint(tmp_path / "model.pth"), tensors)


def test_relatives_are_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = write_checkpoint(tensors | {"blocks.0.att.memory": torch.zeros(3)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="this is the endless toy, which remembers everything; use the toy"):
        ModelFile.open(open_checkpoint(path))
