"""Models on the Hugging Face hub, by address."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from checkpoints import make_checkpoint, write_checkpoint
from torch import Tensor

from rwkv_batch.errors import CheckpointError, ConfigurationError, MissingExtraError
from rwkv_batch.models.files.checkpoint import open_checkpoint


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return make_checkpoint("6.0", n_layer=1, n_embd=64, n_ffn=64, vocab=10)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("address", "expected", "warns"),
    [
        (f"hf://BlinkDL/rwkv-7-world/model.pth@{COMMIT}", ("BlinkDL/rwkv-7-world", "model.pth", COMMIT), False),
        ("hf://BlinkDL/rwkv-7-world/model.pth", ("BlinkDL/rwkv-7-world", "model.pth", "main"), True),
        ("hf://a/b/folder/m.pth@refs/pr/1", ("a/b", "folder/m.pth", "refs/pr/1"), True),
    ],
)
def test_hub_address(
    address: str,
    expected: tuple[str, str, str],
    warns: bool,
    tensors: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = write_checkpoint(tensors, tmp_path / "model.pth")
    asked = []

    def hf_hub_download(repo: str, file: str, *, revision: str) -> str:
        asked.append((repo, file, revision))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    with caplog.at_level(logging.WARNING):
        checkpoint = open_checkpoint(address)
    assert asked == [expected]
    assert checkpoint.names == tensors.keys()
    assert bool(caplog.records) == warns


@pytest.mark.parametrize(
    ("address", "inner", "revision"),
    [
        ("hf://RWKV/RWKV7-7.2B-20260805", "", "main"),
        (f"hf://a/b@{COMMIT}", "", COMMIT),
        ("hf://a/b/weights/rwkv7-1.5B", "weights/rwkv7-1.5B", "main"),
    ],
)
def test_hub_address_of_a_repository(
    address: str,
    inner: str,
    revision: str,
    tensors: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / inner
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint({f"rwkv.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "rwkv6"}')
    asked = []

    def snapshot_download(repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repo, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    checkpoint = open_checkpoint(address)
    assert checkpoint.names == tensors.keys()
    assert checkpoint.format == "huggingface"
    ((_, asked_revision, patterns),) = asked
    assert asked_revision == revision
    assert {f"{inner}/*.json".lstrip("/"), f"{inner}/*.safetensors".lstrip("/")} <= set(patterns)


@pytest.mark.parametrize(
    "address", ["hf://owner", "hf://owner//file.pth", "hf://a/b/c.pth@x@y", "hf://", "hf://\ud800/b"]
)
def test_malformed_hub_address(address: str) -> None:
    with pytest.raises(ConfigurationError, match="expected hf://owner/repo/file"):
        open_checkpoint(address)


def test_hub_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    def hf_hub_download(*_: object, **__: object) -> str:
        raise OSError("404 Client Error")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    with pytest.raises(CheckpointError, match=r"hf://a/b/c\.pth.*404"):
        open_checkpoint("hf://a/b/c.pth")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"rwkv_batch\[hub\]"):
        open_checkpoint("hf://a/b/c.pth")
