"""Folders in Hugging Face layout, made of canonical checkpoints.

The names and orders here are written down by hand from the packages that save such folders. They do not come from the
version files, so a wrong name map there does not pass.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint
from torch import Tensor

from rwkv_batch.errors import CheckpointError
from rwkv_batch.models.architecture import identify
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


def to_official_v7(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rwkv7ForCausalLM: BlinkDL's names behind a prefix, and a value residual in layer 0 that nothing reads."""
    theirs = {name if name == "head.weight" else f"rwkv7.{name}": tensor for name, tensor in tensors.items()}
    return theirs | {
        f"rwkv7.blocks.0.att.{name}": torch.zeros_like(tensors[f"blocks.1.att.{name}"]) for name in ("v0", "v1", "v2")
    }


def to_interim_v7(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The form before the official one: low-rank matrices are linear layers, hence transposed."""
    theirs = {}
    for name, tensor in tensors.items():
        if name.split(".")[-1] in {f"{c}{i}" for c in "wavg" for i in (1, 2)}:
            name, tensor = f"{name}.weight", tensor.t()
        theirs[name if name == "head.weight" else f"model.{name.replace('emb.', 'embeddings.')}"] = tensor
    return theirs


def to_rwkv_rs_v7(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """RwkvForCausalLM of rwkv-rs: vectors have one axis."""
    words = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm", "att": "linear_attn", "ffn": "mlp"}
    parts = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
    theirs = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(\w+)\.(.+)", name)
        if match is None:
            name = {"emb.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight"}.get(name, name)
            name = name.replace("ln_out", "model.norm")
        elif match[2] == "ln0":
            name = f"model.embedding_norm.{match[3]}"
        else:
            last = match[3].split(".")
            if match[2] == "att":
                last[0] = parts.get(last[0], last[0])
            name = f"model.layers.{match[1]}.{words[match[2]]}.{'.'.join(last)}"
        theirs[name] = tensor.reshape(-1) if tensor.shape[:2] == (1, 1) else tensor
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
    "official v7": (
        "7.0",
        to_official_v7,
        {"model_type": "rwkv7", "head_dim": 64, "num_heads": 2, "hidden_act": "relu2", **FLA_EPS},
        64e-5,
    ),
    "interim v7": ("7.0", to_interim_v7, {"model_type": "rwkv7", "group_norm_epsilon": 3e-4}, 3e-4),
    "rwkv-rs v7": (
        "7.0",
        to_rwkv_rs_v7,
        {
            "model_type": "rwkv",
            "architecture_version": "rwkv7",
            "group_norm_epsilon": 64e-5,
            "layer_norm_epsilon": 1e-5,
        },
        64e-5,
    ),
    "fla v7 of old": ("7.0", to_fla_v7_of_old, {"model_type": "rwkv7"}, None),
}


UNREAD = {f"blocks.0.att.{name}" for name in ("v0", "v1", "v2")}
"""What layer 0 of v7 may have and does not read."""


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
    assert checkpoint.names - UNREAD == expected.keys()
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
    assert checkpoint.names - UNREAD == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.tensor(name), tensor), name


@pytest.mark.parametrize("prefix", ["module.", "_forward_module.module."])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrapper_may_put_a_prefix_in_front_of_all_names(family: str, prefix: str, tmp_path: Path) -> None:
    version, rename, config, _ = FAMILIES[family]
    expected = make_checkpoint(version, **SIZES)
    wrapped = {prefix + name: tensor for name, tensor in rename(expected).items()}
    assert open_checkpoint(write_folder(tmp_path / "model", wrapped, config)).names - UNREAD == expected.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_file_of_a_folder_stands_for_the_folder(family: str, tmp_path: Path) -> None:
    version, rename, config, eps = FAMILIES[family]
    expected = make_checkpoint(version, **SIZES)
    folder = write_folder(tmp_path / "model", rename(expected), config)
    checkpoint = open_checkpoint(folder / "model.safetensors")
    assert checkpoint.format == "huggingface"
    assert checkpoint.ln_x_eps == (None if eps is None else pytest.approx(eps))
    assert checkpoint.names - UNREAD == expected.keys()


def test_one_of_several_weight_files_stands_for_the_folder(tmp_path: Path) -> None:
    expected = make_checkpoint("7.0", **SIZES)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    folder = write_folder(tmp_path / "model", to_official_v7(expected), {"model_type": "rwkv7"}, shards)
    assert open_checkpoint(folder / shards[1]).names - UNREAD == expected.keys()


def test_a_file_without_its_config_names_the_folder(tmp_path: Path) -> None:
    tensors = to_fla_v7(make_checkpoint("7.0", **SIZES))
    path = write_checkpoint(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"pass the folder with its config\.json.*hf://owner/repo"):
        identify(open_checkpoint(path))


def test_a_canonical_file_beside_a_config_stands_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    path = write_checkpoint(make_checkpoint("7.0", **SIZES), tmp_path / "model.safetensors")
    assert open_checkpoint(path).format == "safetensors"


def test_an_embedding_with_its_norm_applied(tmp_path: Path) -> None:
    tensors = make_checkpoint("7.0", **SIZES)
    for kind in ("weight", "bias"):
        del tensors[f"blocks.0.ln0.{kind}"]
    config = {"model_type": "rwkv", "embedding_layer_norm_fused": True}
    assert open_checkpoint(write_folder(tmp_path / "model", to_rwkv_rs_v7(tensors), config)).embedding_is_normalized


@pytest.mark.parametrize("value", ["8", [8], {"a": 1}, True, -8, 0, float("nan"), float("inf"), 10**400], ids=str)
@pytest.mark.parametrize("key", ["head_size_divisor", "layer_norm_epsilon"])
def test_a_setting_that_is_no_number_is_refused(key: str, value: object, tmp_path: Path) -> None:
    config = {"model_type": "rwkv5", "layer_norm_epsilon": 1e-5, "head_size_divisor": 8, key: value}
    folder = write_folder(tmp_path / "model", to_transformers(make_checkpoint("5.2", **SIZES)), config)
    with pytest.raises(CheckpointError, match=rf"config\.json: {key} is "):
        open_checkpoint(folder)


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


@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [("fla v6", "attn.x_bias", [0, 128]), ("fla v7", "attn.w_lora.lora.0.weight", [1, 32, 128])],
    ids=str,
)
def test_a_tensor_of_an_impossible_shape(family: str, name: str, shape: list[int], tmp_path: Path) -> None:
    version, rename, config, _ = FAMILIES[family]
    tensors = rename(make_checkpoint(version, **SIZES)) | {f"model.layers.1.{name}": torch.zeros(shape)}
    checkpoint = open_checkpoint(write_folder(tmp_path / "model", tensors, config))
    with pytest.raises(CheckpointError, match=re.escape(f"is stored in shape {shape}")):
        identify(checkpoint)


MATRIX = {"head.weight": torch.zeros(2, 2)}
CONFIG = {"model_type": "rwkv"}


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "config": (_write("config.json", "{"), "config.json: not JSON"),
    "deep": (_write("config.json", "[" * 100_000), "config.json: not JSON"),
    "deep index": (_write("model.safetensors.index.json", "[" * 100_000), "index.json: not JSON"),
    "another hybrid": (_write("config.json", '{"model_type": "hxa079"}'), "Hybrids of RWKV and attention"),
    "list": (_write("config.json", "[]"), "model_type is None"),
    "llama": (
        _write("config.json", '{"model_type": "llama"}'),
        "'llama', expected one of rwkv,",
    ),
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
