"""Files that a user names: pipes and folders are refused at once, and a byte order mark is no text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from rwkv_batch import LLM
from rwkv_batch.errors import CheckpointError, ConfigurationError
from rwkv_batch.text.load_tokenizer import load_tokenizer
from rwkv_batch.text.vocabulary import read_vocabulary
from rwkv_batch.user_files import parse_json, read_json, read_text, reason_of

STRANGE = ("\0", "a\0b", "\ud800", "x" * 300, "y/" * 40_000, "pipe", "folder", "loop", "missing", "/dev/zero")


@pytest.fixture(autouse=True)
def strange_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.mkdir("folder")
    os.symlink("loop", "loop")


@pytest.mark.parametrize("name", STRANGE)
def test_a_path_that_is_no_regular_file_is_an_error_at_once(name: str) -> None:
    with pytest.raises((OSError, ValueError)) as caught:
        read_text(name)
    assert isinstance(caught.value, OSError | ValueError)
    assert reason_of(caught.value)


@pytest.mark.parametrize("name", STRANGE)
def test_the_library_says_so_in_a_sentence(name: str) -> None:
    with pytest.raises(CheckpointError):
        LLM(name)
    with pytest.raises(CheckpointError):
        LLM("demo", init_state=name)
    with pytest.raises(ConfigurationError):
        load_tokenizer(name, vocab_size=257, model_path=None)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.txt").write_bytes(b"\xef\xbb\xbf1 'a' 1\n2 b'\\xff' 1\n")
    assert read_vocabulary(tmp_path / "vocabulary.txt") == {1: b"a", 2: b"\xff"}
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "config.json") == {"a": 1}


def test_json_that_is_nested_too_deeply_is_no_json() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


def test_a_pipe_in_a_models_folder(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "folder" / "x.pth")
    os.mkfifo(tmp_path / "folder" / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        LLM("folder")
