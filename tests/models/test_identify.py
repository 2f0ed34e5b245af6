"""The version of a checkpoint, and the error of a checkpoint of no version."""

from __future__ import annotations

import re

import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint
from versions import VARIANTS, VERSIONS, with_matrix_state

from rwkv_batch.errors import CheckpointError, ConfigurationError
from rwkv_batch.models import architecture as architecture_module
from rwkv_batch.models.architecture import architectures, register
from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.model import ModelFile
from rwkv_batch.models.placement import place
from rwkv_batch.models.rwkv4 import Rwkv4
from rwkv_batch.models.schema import Schema


def identify(tensors, tmp_path):
    return ModelFile.open(open_checkpoint(write_checkpoint(tensors, tmp_path / "model.pth")))


def test_every_version_has_its_module_of_tests():
    assert {variant.architecture for variant in VARIANTS.values()} == set(architectures())


@pytest.mark.parametrize("version", VERSIONS)
def test_exactly_one_version_matches(version, tmp_path):
    tensors = make_checkpoint(version, n_layer=1, n_embd=96, n_ffn=40, head_size=32, vocab=31)
    file = identify(tensors, tmp_path)
    assert file.architecture is VARIANTS[version].architecture
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    matching = []
    for architecture in architectures():
        match = architecture.schema.match(shapes, shapes.__getitem__)
        if not match.describe() and not architecture.refine_sizes(match.sizes):
            matching.append(architecture)
    assert matching == [file.architecture]
    heads = {"H": 3, "N": 32} if version in with_matrix_state() else {}
    expected = {"L": 1, "C": 96, "A": 96, "F": 40, "V": 31} | heads
    assert {letter: file.sizes[letter] for letter in expected} == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_a_missing_tensor_is_named(version, tmp_path):
    tensors = make_checkpoint(version)
    del tensors["blocks.1.ffn.key.weight"]
    name = re.escape(VARIANTS[version].architecture.name)
    with pytest.raises(CheckpointError, match=rf"{name}: missing: blocks.1.ffn.key.weight\n"):
        identify(tensors, tmp_path)


def test_an_unexpected_tensor_is_named(tmp_path):
    tensors = make_checkpoint("7.0") | {"blocks.2.att.mystery": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"rwkv7: not expected: blocks.2.att.mystery"):
        identify(tensors, tmp_path)


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path):
    tensors = make_checkpoint("6.0")
    tensors["blocks.1.att.key.weight"] = torch.zeros(128, 64)
    complaint = r"rwkv6: shape: blocks.1.att.key.weight: is \[128, 64\], expected C = 128"
    with pytest.raises(CheckpointError, match=complaint):
        identify(tensors, tmp_path)


def test_heads_must_tile_the_attention_width(tmp_path):
    tensors = make_checkpoint("7.0")
    for i in range(3):
        tensors[f"blocks.{i}.att.r_k"] = torch.zeros(3, 64)
    with pytest.raises(CheckpointError, match="3 heads of 64 do not make an attention width of 128"):
        identify(tensors, tmp_path)


def test_growing_caches_are_refused_by_name(tmp_path):
    tensors = make_checkpoint("7.0de") | {"blocks.0.qkv.k_emb.weight": torch.zeros(97, 8)}
    with pytest.raises(CheckpointError, match=r"RWKV-7b.*grows with every token"):
        identify(tensors, tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "_forward_module.", "model.", "_orig_mod.module."])
def test_a_prefix_of_all_names_is_left_out(prefix, tmp_path):
    tensors = {prefix + name: tensor for name, tensor in make_checkpoint("6.0").items()}
    assert identify(tensors, tmp_path).architecture.name == "rwkv6"


def test_tensors_that_all_layers_lack_are_one_item(tmp_path):
    tensors = {name: tensor for name, tensor in make_checkpoint("7.0").items() if "att.r_k" not in name}
    with pytest.raises(CheckpointError, match=r"rwkv7: missing: blocks\.N\.att\.r_k \(3 layers\)\n"):
        identify(tensors, tmp_path)


def test_only_versions_that_share_the_names_are_listed(tmp_path):
    tensors = make_checkpoint("4") | {"blocks.0.att.mystery": torch.zeros(3)}
    with pytest.raises(CheckpointError) as caught:
        identify(tensors, tmp_path)
    assert "rwkv4: not expected: blocks.0.att.mystery" in str(caught.value)
    assert "rwkv6" not in str(caught.value)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    "name", ["blocks.1000000000.att.x", "blocks.999999999.att.key.weight", f"blocks.{'9' * 5000}.att.x", "blocks.١.x"]
)
def test_layers_are_counted_not_numbered(name, tmp_path):
    with pytest.raises(CheckpointError, match=r"no RWKV version has these tensors; it has 1, such as 'blocks\."):
        identify({name: torch.zeros(2, 2)}, tmp_path)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("blocks.0.rosa.rosa_qkv.emb.weight", r"RWKV-8 \(ROSA\)"),
        ("rwkv7.blocks.0.qkv.k1", "RWKV-7b"),
        ("model.layers.3.self_attn.q_proj.weight", "a model with attention, or a hybrid"),
    ],
)
def test_what_cannot_run_is_refused_by_name(name, family, tmp_path):
    with pytest.raises(CheckpointError, match=f"this is {family}"):
        identify(make_checkpoint("7.0") | {name: torch.zeros(4, 4)}, tmp_path)


def test_an_adapter_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"adapter \(LoRA\): merge it"):
        identify({"blocks.0.att.key.lora_A": torch.zeros(4, 4)}, tmp_path)


def test_something_else_entirely_lists_the_nearest_versions(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        identify({"model.embed.weight": torch.zeros(4, 4)}, tmp_path)
    assert len(re.findall(r"^  rwkv", str(caught.value), re.M)) == 3
    assert "BlinkDL" in str(caught.value)


def test_layer_0_of_v7_may_carry_the_unused_value_residual(tmp_path):
    tensors = make_checkpoint("7.0")
    for name in ("v0", "v1", "v2"):
        tensors[f"blocks.0.att.{name}"] = tensors[f"blocks.1.att.{name}"]
    assert identify(tensors, tmp_path).architecture.name == "rwkv7"


def test_a_registered_version_is_identified(tmp_path, monkeypatch):
    class Wider(Rwkv4):
        name = "wider"
        schema = Schema(Rwkv4.schema.top, {**Rwkv4.schema.layer, "att.extra": "C"}, first_only=Rwkv4.schema.first_only)

    monkeypatch.setattr(architecture_module, "_registered", [])
    tensors = make_checkpoint("4", n_layer=1)
    tensors["blocks.0.att.extra"] = torch.zeros(tensors["ln_out.bias"].shape)
    with pytest.raises(CheckpointError, match=r"rwkv4: not expected: blocks.0.att.extra"):
        identify(tensors, tmp_path)
    before = architectures()
    register(Wider, Wider)
    register(Wider)
    assert architectures() == [*before, Wider]
    assert identify(tensors, tmp_path).architecture is Wider


def test_states_of_another_size_are_refused(tmp_path):
    file = identify(make_checkpoint("6.0"), tmp_path)
    torch.save({f"blocks.{i}.att.time_state": torch.zeros(2, 32, 32) for i in range(3)}, tmp_path / "state.pth")
    with pytest.raises(CheckpointError, match=r"time_state \[2, 32, 32\] .*, expected .*\[2, 64, 64\], .* 3 layers"):
        file.initial_states(tmp_path / "state.pth")


def test_v4_starts_from_no_stored_state(tmp_path):
    file = identify(make_checkpoint("4"), tmp_path)
    torch.save({"blocks.0.att.time_state": torch.zeros(2, 64, 64)}, tmp_path / "state.pth")
    with pytest.raises(CheckpointError, match=r"rwkv4 cannot start from a stored state; use a model of rwkv5\.0, "):
        file.initial_states(tmp_path / "state.pth")


@pytest.mark.parametrize(
    ("strategy", "dtype", "quantization"),
    [("cpu fp32", torch.float32, None), ("cpu bf16", torch.bfloat16, None), ("cpu fp16i8", torch.float16, "int8")],
)
def test_strategies(strategy, dtype, quantization):
    placement = place(strategy=strategy)
    assert (placement.device.type, placement.dtype, placement.quantization) == ("cpu", dtype, quantization)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(strategy="cpu fp8"), "strategy: got 'cpu fp8'"),
        (dict(strategy="cpu fp32", dtype="float32"), "leave those three unset"),
        (dict(dtype="int4"), "dtype: got 'int4', expected auto, float32, bfloat16 or float16"),
        (dict(quantization="int4"), "quantization: got 'int4'"),
        (dict(device="gpu"), "device: got 'gpu'"),
    ],
)
def test_wrong_placements_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        place(**settings)
