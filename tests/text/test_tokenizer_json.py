"""Tokenizers of `tokenizer.json` files: ids and texts are those of the package `tokenizers`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizer_cases import DIFFICULT, comparable, each

from rwkv_batch.errors import ConfigurationError, RowError
from rwkv_batch.text.load_tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level BPE such as RWKV-4's, trained on a few words."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["hello world, 世界 hello\n\n"] * 5, trainer)
    backend.add_tokens([AddedToken("    ")])
    backend.enable_truncation(3)
    backend.post_processor = processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    return backend


def test_byte_level_tokenizer_json(tmp_path: Path, byte_level):
    path = tmp_path / "tokenizer.json"
    byte_level.save(str(path))
    byte_level.no_truncation()
    tokenizer = load_tokenizer("auto", vocab_size=500, model_path=tmp_path)
    assert tokenizer.name == "tokenizer.json"
    assert tokenizer.max_token_id == byte_level.get_vocab_size() - 1
    assert tokenizer.token_bytes[0] is None and None not in tokenizer.token_bytes[1:]
    assert tokenizer.token_bytes[-1] == b"    "
    assert comparable(tokenizer.encode_many([*DIFFICULT, "\ud800"])) == each(tokenizer, [*DIFFICULT, "\ud800"])
    assert comparable(tokenizer.encode_many_bytes([b"a\xff", b"hello"]))[1] == tokenizer.encode("hello")
    for text in [*DIFFICULT, "hello world, 世界    hello"]:
        assert tokenizer.encode(text) == byte_level.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    every_id = range(tokenizer.max_token_id + 1)
    assert [tokenizer.decode([i]) for i in every_id] == [byte_level.decode([i]) for i in every_id]
    with pytest.raises(RowError, match="surrogate"):
        tokenizer.encode("\ud800")
    with pytest.raises(RowError, match="not UTF-8"):
        tokenizer.encode_bytes(b"a\xff")


def test_sentencepiece_tokenizer_json(tmp_path: Path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "é"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<unk>"])
    path = tmp_path / "tokenizer.json"
    backend.save(str(path))
    tokenizer = load_tokenizer(str(path), vocab_size=300, model_path=None)
    assert tokenizer.decode_bytes(tokenizer.encode("a aé 漢")) == "a aé 漢".encode()
    assert tokenizer.token_bytes[: 1 + 0x0B] == [None, *(bytes([byte]) for byte in range(11))]


def test_tokenizer_json_without_bytes_is_refused(tmp_path: Path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    path = tmp_path / "tokenizer.json"
    Backend(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(path))
    with pytest.raises(ConfigurationError, match="byte-level BPE"):
        load_tokenizer(str(path), vocab_size=300, model_path=None)
    for content in ("{", '{"model": 1}'):
        path.write_text(content)
        with pytest.raises(ConfigurationError, match=r"tokenizer\.json"):
            load_tokenizer(str(path), vocab_size=300, model_path=None)
