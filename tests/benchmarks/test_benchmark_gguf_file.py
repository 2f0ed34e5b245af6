"""The GGUF file holds the checkpoint's own numbers, under the names and in the order that llama.cpp reads them."""

from __future__ import annotations

import ast
from importlib.util import find_spec

import pytest
import torch
from checkpoints import make_checkpoint

from benchmarks.gguf_file import keeps_float32, sizes_of, tensors, vocabulary, write
from rwkv_batch.text.load_tokenizer import load_tokenizer
from rwkv_batch.text.vocabulary import WORLD_VOCABULARY


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, torch.Tensor]:
    return make_checkpoint("7.0")


def test_sizes(checkpoint):
    sizes = sizes_of(checkpoint)
    assert sizes[:5] == (3, 128, 256, 97, 64)
    assert sizes.ranks == {"w": 32, "a": 24, "v": 16, "g": 40}
    with pytest.raises(ValueError, match=r"blocks\.1\.att\.r_k"):
        sizes_of(make_checkpoint("6.0"))


def test_every_number_of_the_checkpoint_is_there_once(checkpoint):
    found = dict(tensors(checkpoint))
    # Layer 0 has no residual of values; llama.cpp wants its three tensors nevertheless.
    unread = {f"blk.0.time_mix_v{part}.weight" for part in "012"}
    assert unread < set(found)
    total = sum(tensor.numel() for name, tensor in found.items() if name not in unread)
    assert total == sum(tensor.numel() for tensor in checkpoint.values())


def test_factors_are_transposed_and_mixes_are_in_order(checkpoint):
    found, att = dict(tensors(checkpoint)), "blocks.1.att."
    assert torch.equal(found["blk.1.time_mix_g1.weight"], checkpoint[f"{att}g1"].t())
    assert found["blk.1.time_mix_g2.weight"].shape == (128, 40)
    assert torch.equal(found["blk.1.time_mix_key.weight"], checkpoint[f"{att}key.weight"])
    fused = found["blk.1.time_mix_lerp_fused.weight"]
    assert fused.shape == (6, 1, 1, 128)
    for i, letter in enumerate("rwkvag"):
        assert torch.equal(fused[i], checkpoint[f"{att}x_{letter}"])


def test_vocabulary_entries_are_escaped_bytes_by_id():
    entries = vocabulary(WORLD_VOCABULARY, 65536)
    tokenizer = load_tokenizer("world", vocab_size=65536, model_path=None)
    assert len(entries) == 65536
    for token_id in (1, 11, 40, 93, 129, 256, 257, 5000, 65529):
        quoted = entries[token_id].replace(b"\\'", b"'").replace(b"'", b"\\'").decode()
        assert ast.literal_eval(f"b'{quoted}'") == tokenizer.token_bytes[token_id]
    assert entries[0] == b"<s>" and entries[65535] == b"[PAD65535]"


@pytest.mark.skipif(find_spec("gguf") is None, reason="the package gguf is not installed")
@pytest.mark.parametrize("form", ["F32", "F16", "BF16"])
def test_the_file_reads_back(checkpoint, tmp_path, form):
    from gguf import GGUFReader

    torch.save(checkpoint, tmp_path / "model.pth")
    write(tmp_path / "model.pth", WORLD_VOCABULARY, tmp_path / "model.gguf", form)
    expected = dict(tensors(checkpoint))
    reader = GGUFReader(tmp_path / "model.gguf")
    assert {tensor.name for tensor in reader.tensors} == set(expected)
    for tensor in reader.tensors:
        own = expected[tensor.name]
        assert tuple(tensor.shape) == tuple(reversed(own.shape))
        assert tensor.tensor_type.name == ("F32" if keeps_float32(tensor.name, own) else form)
        if tensor.tensor_type.name == "F32":
            assert torch.equal(torch.from_numpy(tensor.data.copy()).view(own.shape), own)


def test_other_forms_are_refused(tmp_path):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    with pytest.raises(ValueError, match="got 'Q8_0'"):
        write(tmp_path / "model.pth", WORLD_VOCABULARY, tmp_path / "model.gguf", "Q8_0")
