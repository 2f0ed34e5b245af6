"""The tokenizer that a name, a file, or "auto" stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizer_cases import write

from rwkv_batch.errors import ConfigurationError, RowError
from rwkv_batch.text.load_tokenizer import load_tokenizer


def test_custom_vocabulary_with_missing_bytes(tmp_path: Path):
    path = write(tmp_path / "small.txt", "1 'a' 1", "2 'ab' 2", "5 b'\\xff' 1", "7 'é' 2")
    tokenizer = load_tokenizer(str(path), vocab_size=8, model_path=None)
    assert tokenizer.encode("aabé") == [1, 2, 7]
    assert tokenizer.token_bytes == [None, b"a", b"ab", None, None, b"\xff", None, "é".encode()]
    with pytest.raises(RowError, match="byte 2, which is 0x7A") as caught:
        tokenizer.encode("abz")
    assert caught.value.code == "unencodable_text"


def test_auto_from_the_vocabulary_size(tmp_path: Path):
    for size, name in ((65530, "world"), (65536, "world"), (257, "bytes")):
        assert load_tokenizer("auto", vocab_size=size, model_path=tmp_path / "model.pth").name == name
    assert load_tokenizer(None, vocab_size=1, model_path=None) is None
    with pytest.raises(ConfigurationError, match=r"50277.*'world'.*'bytes'.*tokenizer\.json.*null"):
        load_tokenizer("auto", vocab_size=50277, model_path=None)


@pytest.mark.parametrize("name", ["rwkv_vocab_mine.txt", "vocab.txt"])
def test_auto_prefers_a_file_beside_the_model_that_fits(tmp_path: Path, name: str):
    write(tmp_path / name, "1 'a' 1", "300 'b' 1")
    for model in (tmp_path, tmp_path / "model.pth"):
        assert load_tokenizer("auto", vocab_size=301, model_path=model).name == name
        assert load_tokenizer("auto", vocab_size=257, model_path=model).name == "bytes"
    with pytest.raises(ConfigurationError, match=f"{name} has ids up to 300"):
        load_tokenizer("auto", vocab_size=300, model_path=tmp_path)


def test_a_folder_stands_for_its_vocabulary_file(tmp_path: Path):
    write(tmp_path / "rwkv_vocab_mine.txt", "1 'a' 1", "300 'b' 1")
    assert load_tokenizer(str(tmp_path), vocab_size=301, model_path=None).name == "rwkv_vocab_mine.txt"
    with pytest.raises(ConfigurationError, match="its largest id is 300"):
        load_tokenizer(str(tmp_path), vocab_size=257, model_path=None)


def test_tokenizer_with_more_ids_than_the_model_is_refused():
    with pytest.raises(ConfigurationError, match=r"65529.*50277"):
        load_tokenizer("world", vocab_size=50277, model_path=None)
    with pytest.raises(ConfigurationError, match=r"256.*256"):
        load_tokenizer("bytes", vocab_size=256, model_path=None)
    with pytest.raises(ConfigurationError, match=r"65529.*65529"):
        load_tokenizer("auto", vocab_size=65529, model_path=None)


@pytest.mark.parametrize("spec", ["wrold", "missing.json", "/"])
def test_unknown_tokenizer_lists_the_choices(spec: str):
    with pytest.raises(ConfigurationError, match="'world', 'bytes', a vocabulary file"):
        load_tokenizer(spec, vocab_size=65536, model_path=None)
