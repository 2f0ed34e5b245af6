"""Folders in Hugging Face layout: their tensors are those of the canonical checkpoints that they were made of."""

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
from hf_families import FAMILIES, SIZES, to_fla_v7, to_official_v7, to_rwkv_rs_v7, to_transformers
from torch import Tensor

from rwkv_batch.errors import CheckpointError
from rwkv_batch.models.architecture import identify
from rwkv_batch.models.files.checkpoint import open_checkpoint

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
