"""Folders in Hugging Face layout, made of canonical checkpoints.

The names and orders here are written down by hand from the packages that save such folders. They do not come from the
version files, so a wrong name map there does not pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint
from torch import Tensor

from rwkv_batch.errors import CheckpointError
from rwkv_batch.models.files.checkpoint import open_checkpoint

SIZES: dict[str, Any] = {"n_layer": 2, "n_embd": 128, "n_ffn": 192, "vocab": 50}


def to_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of RwkvForCausalLM."""
    longer = {"k": "key", "v": "value", "r": "receptance", "g": "gate"}
    theirs = {}
    for name, tensor in tensors.items():
        if name == "head.weight":
            theirs[name] = tensor
            continue
        name = name.replace("emb.", "embeddings.").replace("ln0", "pre_ln")
        name = name.replace(".att.", ".attention.").replace(".ffn.", ".feed_forward.")
        if "time_mix_" in name:
            name = name[:-1] + longer[name[-1]]
        theirs[f"rwkv.{name}"] = tensor
    return theirs


def _fla_top(tensors: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    theirs["model.embeddings.weight"] = tensors["emb.weight"]
    theirs["lm_head.weight"] = tensors["head.weight"]
    for kind in ("weight", "bias"):
        theirs[f"model.norm.{kind}"] = tensors[f"ln_out.{kind}"]
        theirs[f"model.layers.0.pre_norm.{kind}"] = tensors[f"blocks.0.ln0.{kind}"]
        for i in range(SIZES["n_layer"]):
            for ours, name in (("ln1", "attn_norm"), ("ln2", "ffn_norm"), ("att.ln_x", "attn.g_norm")):
                theirs[f"model.layers.{i}.{name}.{kind}"] = tensors[f"blocks.{i}.{ours}.{kind}"]


def to_fla_v6(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """RWKV6ForCausalLM. Its five interpolations are ordered r, w, k, v, g; BlinkDL's w, k, v, r, g."""
    theirs: dict[str, Tensor] = {}
    _fla_top(tensors, theirs)
    for i in range(SIZES["n_layer"]):
        att, ffn, to = f"blocks.{i}.att.", f"blocks.{i}.ffn.", f"model.layers.{i}."
        for ours, letter in (("receptance", "r"), ("key", "k"), ("value", "v"), ("gate", "g")):
            theirs[f"{to}attn.{letter}_proj.linear.weight"] = tensors[f"{att}{ours}.weight"]
        theirs[f"{to}attn.o_proj.weight"] = tensors[f"{att}output.weight"]
        theirs[f"{to}attn.bonus"] = tensors[f"{att}time_faaaa"]
        theirs[f"{to}attn.x_proj.0.mu"] = tensors[f"{att}time_maa_x"].view(-1)
        w, k, v, r, g = tensors[f"{att}time_maa_w1"].chunk(5, dim=1)
        theirs[f"{to}attn.x_proj.0.linear.weight"] = torch.cat((r, w, k, v, g), dim=1).t()
        w, k, v, r, g = tensors[f"{att}time_maa_w2"]
        theirs[f"{to}attn.x_proj.2.weight"] = torch.cat((r, w, k, v, g), dim=0).t()
        theirs[f"{to}attn.x_bias"] = torch.stack([tensors[f"{att}time_maa_{m}"].view(-1) for m in "rwkvg"])
        theirs[f"{to}attn.w_proj.linear.lora.0.weight"] = tensors[f"{att}time_decay_w1"].t()
        theirs[f"{to}attn.w_proj.linear.lora.2.weight"] = tensors[f"{att}time_decay_w2"].t()
        theirs[f"{to}attn.w_proj.linear.lora.2.bias"] = tensors[f"{att}time_decay"].view(-1)
        for ours in ("key", "receptance"):
            theirs[f"{to}ffn.{ours}.linear.weight"] = tensors[f"{ffn}{ours}.weight"]
            theirs[f"{to}ffn.{ours}.mu"] = tensors[f"{ffn}time_maa_{ours[0]}"].view(-1)
        theirs[f"{to}ffn.value.weight"] = tensors[f"{ffn}value.weight"]
    return theirs


def to_fla_v7(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """RWKV7ForCausalLM."""
    theirs: dict[str, Tensor] = {}
    _fla_top(tensors, theirs)
    for i in range(SIZES["n_layer"]):
        att, ffn, to = f"blocks.{i}.att.", f"blocks.{i}.ffn.", f"model.layers.{i}."
        for ours, letter in (("receptance", "r"), ("key", "k"), ("value", "v"), ("output", "o")):
            theirs[f"{to}attn.{letter}_proj.weight"] = tensors[f"{att}{ours}.weight"]
        for m in "rwkvag":
            theirs[f"{to}attn.x_{m}"] = tensors[f"{att}x_{m}"]
        for name in ("k_k", "k_a"):
            theirs[f"{to}attn.{name}"] = tensors[f"{att}{name}"].view(-1)
        theirs[f"{to}attn.r_k"] = tensors[f"{att}r_k"]
        for m in "wavg":
            if f"{att}{m}1" in tensors:
                theirs[f"{to}attn.{m}_lora.lora.0.weight"] = tensors[f"{att}{m}1"].t()
                theirs[f"{to}attn.{m}_lora.lora.2.weight"] = tensors[f"{att}{m}2"].t()
            if f"{att}{m}0" in tensors:
                theirs[f"{to}attn.{m}_lora.lora.2.bias"] = tensors[f"{att}{m}0"].view(-1)
        theirs[f"{to}ffn.x_k"] = tensors[f"{ffn}x_k"].view(-1)
        for ours in ("key", "value"):
            theirs[f"{to}ffn.{ours}.weight"] = tensors[f"{ffn}{ours}.weight"]
    return theirs


def to_fla_v7_of_old(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first form of RWKV7ForCausalLM stacked the six interpolations."""
    theirs = to_fla_v7(tensors)
    for i in range(SIZES["n_layer"]):
        rows = [theirs.pop(f"model.layers.{i}.attn.x_{m}").view(-1) for m in "rwkvag"]
        theirs[f"model.layers.{i}.attn.x_x"] = torch.stack(rows)
    return theirs


Rename = Callable[[dict[str, Tensor]], dict[str, Tensor]]
FLA_EPS = {"norm_eps": 1e-5}
FAMILIES: dict[str, tuple[str, Rename, dict[str, Any], float | None]] = {
    "transformers v4": ("4", to_transformers, {"model_type": "rwkv", "layer_norm_epsilon": 1e-5}, None),
    "transformers v5": (
        "5.2",
        to_transformers,
        {"model_type": "rwkv5", "layer_norm_epsilon": 1e-5, "head_size_divisor": 8},
        64e-5,
    ),
    "transformers v6": ("6.0", to_transformers, {"model_type": "rwkv6"}, None),
    "fla v6": ("6.0", to_fla_v6, {"model_type": "rwkv6", "hidden_act": "sqrelu", **FLA_EPS}, 1e-5),
    "fla v7": ("7.0", to_fla_v7, {"model_type": "rwkv7", "head_dim": 64, "attn": None, **FLA_EPS}, 64e-5),
    "fla v7 of old": ("7.0", to_fla_v7_of_old, {"model_type": "rwkv7"}, None),
}


def write_folder(
    folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], shards: Iterable[str] = ("model.safetensors",)
) -> Path:
    """Write config.json and the tensors, dealt in turn to the shards; an index where there are several."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shards = list(shards)
    weight_map = {name: shards[i % len(shards)] for i, name in enumerate(tensors)}
    for shard in shards:
        write_checkpoint(
            {name: tensor for name, tensor in tensors.items() if weight_map[name] == shard}, folder / shard
        )
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_canonical(family: str, tmp_path: Path) -> None:
    version, rename, config, eps = FAMILIES[family]
    expected = make_checkpoint(version, **SIZES, dtype=torch.bfloat16)
    checkpoint = open_checkpoint(write_folder(tmp_path / "model", rename(expected), config))
    assert checkpoint.format == "huggingface"
    assert checkpoint.names == expected.keys()
    assert checkpoint.ln_x_eps == (None if eps is None else pytest.approx(eps))
    assert not checkpoint.embedding_is_normalized
    assert checkpoint.folder == tmp_path / "model"
    for name, tensor in expected.items():
        assert checkpoint.shape(name) == tuple(tensor.shape), name
        assert torch.equal(checkpoint.tensor(name), tensor), name


@pytest.mark.parametrize("model_type", ["rwkv", "rwkv5", "rwkv6", "rwkv7"])
@pytest.mark.parametrize("family", FAMILIES)
def test_names_decide_where_the_config_states_another_version(family: str, model_type: str, tmp_path: Path) -> None:
    version, rename, config, _ = FAMILIES[family]
    expected = make_checkpoint(version, **SIZES)
    folder = write_folder(tmp_path / "model", rename(expected), {**config, "model_type": model_type})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.names == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.tensor(name), tensor), name


def test_shards(tmp_path: Path) -> None:
    expected = make_checkpoint("7.0", **SIZES)
    shards = ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"]
    folder = write_folder(tmp_path / "model", to_fla_v7(expected), {"model_type": "rwkv7"}, shards)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.names == expected.keys()
    content = b"".join((folder / shard).read_bytes() for shard in sorted(shards))
    assert checkpoint.fingerprint() == hashlib.sha256(content).hexdigest()


def test_other_settings_of_the_config(tmp_path: Path) -> None:
    tensors = to_fla_v7(make_checkpoint("7.0", **SIZES))
    del tensors["lm_head.weight"]
    for kind in ("weight", "bias"):
        del tensors[f"model.layers.0.pre_norm.{kind}"]
    config = {"model_type": "rwkv7", "tie_word_embeddings": True, "norm_first": False}
    checkpoint = open_checkpoint(write_folder(tmp_path / "model", tensors, config))
    assert torch.equal(checkpoint.tensor("head.weight"), tensors["model.embeddings.weight"])
    assert checkpoint.embedding_is_normalized


def test_float32_decays_beside_16_bit_matrices(tmp_path: Path) -> None:
    """transformers keeps time_decay and time_first of RWKV-4 in float32."""
    tensors = make_checkpoint("4", **SIZES, dtype=torch.float16)
    exact = {name: tensor.float() for name, tensor in tensors.items() if name.endswith(("time_decay", "time_first"))}
    checkpoint = open_checkpoint(
        write_folder(tmp_path / "model", to_transformers(tensors | exact), {"model_type": "rwkv"})
    )
    assert checkpoint.dtype("blocks.1.att.time_decay") == torch.float32
    assert checkpoint.dtype("head.weight") == torch.float16


def test_unknown_names_stay(tmp_path: Path) -> None:
    tensors = {"model.layers.0.attn.q_proj.weight": torch.zeros(2, 2), "model.rotary": torch.zeros(2)}
    checkpoint = open_checkpoint(write_folder(tmp_path / "model", tensors, {"model_type": "rwkv7"}))
    assert checkpoint.names == tensors.keys()


MATRIX = {"head.weight": torch.zeros(2, 2)}
CONFIG = {"model_type": "rwkv"}


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "config": (_write("config.json", "{"), "config.json: not JSON"),
    "list": (_write("config.json", "[]"), "model_type is None"),
    "llama": (_write("config.json", '{"model_type": "llama"}'), "'llama', expected one of rwkv, rwkv5, rwkv6, rwkv7"),
    "hybrid": (_write("config.json", '{"model_type": "rwkv7", "attn": {"layers": [1]}}'), "attn is .*only null"),
    "act": (_write("config.json", '{"model_type": "rwkv7", "hidden_act": "gelu"}'), 'only "sqrelu" is supported'),
    "eps": (_write("config.json", '{"model_type": "rwkv7", "norm_eps": 1e-6}'), "norm_eps is 1e-06; only 1e-05"),
    "index": (_write("model.safetensors.index.json", "[]"), "not an index of safetensors files"),
    "empty index": (_write("model.safetensors.index.json", '{"weight_map": {}}'), "expected files of the same folder"),
    "outside": (
        _write("model.safetensors.index.json", '{"weight_map": {"a": "../../model.safetensors"}}'),
        "expected files of the same folder",
    ),
    "missing shard": (
        _write("model.safetensors.index.json", '{"weight_map": {"a": "b.safetensors"}}'),
        r"b\.safetensors: can't be read",
    ),
    "two files": (lambda folder: write_checkpoint(MATRIX, folder / "b.safetensors"), "2 .safetensors files without"),
    "nothing": (lambda folder: (folder / "model.safetensors").unlink(), "holds no .safetensors file"),
    "pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "as pickle.*safe_serialization=True",
    ),
    "repeated": (
        lambda folder: (
            write_checkpoint(MATRIX, folder / "b.safetensors"),
            _write("model.safetensors.index.json", '{"weight_map": {"a": "model.safetensors", "b": "b.safetensors"}}')(
                folder
            ),
        ),
        "'head.weight' is in another file",
    ),
    "mixed": (
        lambda folder: write_checkpoint(
            MATRIX | {"rwkv.blocks.0.attention.key.weight": torch.zeros(2, 2).half()}, folder / "model.safetensors"
        ),
        "several dtypes",
    ),
    "int64": (lambda folder: write_checkpoint({"a": torch.zeros(2).long()}, folder / "model.safetensors"), "int64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str, tmp_path: Path) -> None:
    damage, message = REFUSED[case]
    folder = write_folder(tmp_path / "model", MATRIX, CONFIG)
    open_checkpoint(folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)
