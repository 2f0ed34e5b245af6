"""Model files in canonical names: .pth and .safetensors, what is read when, and what is refused with which words."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint
from running import Session
from safetensors.torch import save_file
from torch import Tensor
from versions import VERSIONS, with_matrix_state

from rwkv_batch.errors import CheckpointError
from rwkv_batch.models.architecture import identify
from rwkv_batch.models.files import formats
from rwkv_batch.models.files.checkpoint import open_checkpoint, sha256_of_model
from rwkv_batch.models.files.formats import CheckpointFormat, Source
from rwkv_batch.models.files.stored import Contents, StoredTensor


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return make_checkpoint("6.0", n_layer=1, n_embd=64, n_ffn=64, vocab=10)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("version", VERSIONS)
def test_tensors_come_back_as_written(version: str, suffix: str, tmp_path: Path) -> None:
    expected = make_checkpoint(version, n_layer=2, n_embd=64, n_ffn=64, vocab=10, dtype=torch.bfloat16)
    checkpoint = open_checkpoint(write_checkpoint(expected, tmp_path / f"model{suffix}"))
    assert checkpoint.format == suffix[1:]
    assert checkpoint.names == expected.keys()
    assert not checkpoint.embedding_is_normalized
    assert checkpoint.ln_x_eps is None
    assert checkpoint.folder == tmp_path
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.tensor(name), tensor), name
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == torch.bfloat16
        assert checkpoint.mm8(name) is None


def test_pth_of_other_shapes(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """The format before zip files, an OrderedDict, parameters, and float32 vectors beside 16-bit matrices."""
    path = tmp_path / "model.pth"
    entries = OrderedDict((name, torch.nn.Parameter(tensor.half())) for name, tensor in tensors.items())
    entries["blocks.0.att.time_decay"] = torch.nn.Parameter(tensors["blocks.0.att.time_decay"])
    torch.save(entries, path, _use_new_zipfile_serialization=False)
    checkpoint = open_checkpoint(path)
    assert torch.equal(checkpoint.tensor("head.weight"), tensors["head.weight"].half())
    assert not checkpoint.tensor("head.weight").requires_grad
    assert checkpoint.dtype("blocks.0.att.time_decay") == torch.float32


def test_fingerprint_is_that_of_the_file(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = write_checkpoint(tensors, tmp_path / "model.pth")
    assert open_checkpoint(path).fingerprint() == hashlib.sha256(path.read_bytes()).hexdigest()


_RESIDENT = """
import sys, psutil
from rwkv_batch.models.architecture import identify
from rwkv_batch.models.files.checkpoint import open_checkpoint, sha256_of_model
resident = psutil.Process().memory_info
for small, big in zip(sys.argv[1::2], sys.argv[2::2]):
    open_checkpoint(small)
    before = resident().rss
    checkpoint = open_checkpoint(big)
    shapes = [checkpoint.shape(name) for name in checkpoint.names]
    opened = resident().rss
    checkpoint.tensor("w3").sum()
    print(opened - before, resident().rss - before)
"""

MEBIBYTE = 1 << 20


def _sparse_file(path: Path, rows: int, columns: int, count: int) -> Path:
    """`count` bfloat16 tensors w0, w1, ... of zeros, in a file that takes no space on the disk."""
    if path.suffix == ".pth":
        with torch.serialization.skip_data():
            torch.save({f"w{i}": torch.empty(rows, columns, dtype=torch.bfloat16) for i in range(count)}, path)
        return path
    size = 2 * rows * columns
    header = {
        f"w{i}": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(count)
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + count * size)
    return path


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    files = []
    for suffix in (".pth", ".safetensors"):
        files += [
            _sparse_file(tmp_path / f"small{suffix}", 1, 1, 4),
            _sparse_file(tmp_path / f"big{suffix}", 1024, 10240, 20),
        ]
        assert files[-1].stat().st_size > 400 * MEBIBYTE
    output = subprocess.run(
        [sys.executable, "-c", _RESIDENT, *map(str, files)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    ).stdout
    for line in output.splitlines():
        opened, touched = map(int, line.split())
        assert opened < 8 * MEBIBYTE
        assert touched < (20 + 8) * MEBIBYTE


# Refusals


def _pickled(value: object) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(pickle.dumps(value))


def _saved(value: object) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path)


def _truncated(path: Path) -> None:
    torch.save({"w": torch.zeros(100, 100)}, path)
    path.write_bytes(path.read_bytes()[:-2000])


def _truncated_safetensors(path: Path) -> None:
    write_checkpoint({"w": torch.zeros(100, 100)}, path)
    path.write_bytes(path.read_bytes()[:-2000])


def _truncated_legacy(path: Path) -> None:
    torch.save({"w": torch.zeros(100, 100)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-2000])


def _script(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)


MATRIX = torch.zeros(2, 2)
SQUARE = {name: torch.zeros(2, 2) for name in ("emb.weight", "blocks.0.att.w1", "blocks.0.att.w2")}
REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": (".pth", lambda path: None, "No such file"),
    "empty": (".pth", lambda path: path.touch(), "empty"),
    "lfs": (".pth", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
    "lfs safetensors": (".safetensors", lambda path: path.write_text("version https://git-lfs.g/"), "git lfs pull"),
    "text": (".pth", lambda path: path.write_text("<html>Not found</html>"), "neither a PyTorch file"),
    "noise": (".pth", lambda path: path.write_bytes(bytes(range(255, -1, -1)) * 9), "neither a PyTorch file"),
    "three bytes": (".pth", lambda path: path.write_bytes(b"abc"), "not a readable PyTorch file"),
    "gguf": (
        ".pth",
        lambda path: path.write_bytes(b"GGUF" + bytes(99)),
        "GGUF file, the format of llama.cpp.*use the .pth",
    ),
    "gguf by its name": (".gguf", lambda path: path.write_bytes(b"GGUF" + bytes(99)), "GGUF file"),
    "fifo": (".pth", lambda path: os.mkfifo(path), "a pipe or a device"),
    "meta": (".pth", _saved({"w": torch.empty(2, 2, device="meta")}), "'w' has no data"),
    "two of one name": (
        ".pth",
        _saved({"module.emb.weight": MATRIX, "module.head.weight": MATRIX, "head.weight": MATRIX}),
        "name the same tensor",
    ),
    "eps": (
        ".safetensors",
        lambda path: save_file({"w": MATRIX}, path, {"rwkv_batch.ln_x_eps": "nan"}),
        "ln_x_eps are 'nan', expected a number between 0 and 1",
    ),
    "square": (".safetensors", lambda path: write_checkpoint(SQUARE, path), "all low-rank matrices are square"),
    "another zip": (".pth", lambda path: path.write_bytes(b"PK\x03\x04" + bytes(2000)), "cut short"),
    "truncated": (".pth", _truncated, "cut short"),
    "truncated legacy": (".pth", _truncated_legacy, "cut short"),
    "truncated safetensors": (".safetensors", _truncated_safetensors, "cut short"),
    "pth called safetensors": (".safetensors", _saved({"w": MATRIX}), "not a readable safetensors"),
    "torchscript": (".pth", _script, "TorchScript"),
    "module": (".pth", _saved(torch.nn.Linear(2, 2)), r"torch\.nn\.modules\.linear\.Linear.*plain tensors"),
    "code": (".pth", _saved({"w": types.SimpleNamespace(a=1)}), "SimpleNamespace"),
    "bare pickle": (".pth", _pickled({"a": 1}), "not a readable|neither a PyTorch file"),
    "tensor": (".pth", _saved(MATRIX), "holds a Tensor, expected a dict"),
    "list": (".pth", _saved([MATRIX]), "holds a list, expected a dict"),
    "numbered": (".pth", _saved({1: MATRIX}), "expected a dict from names"),
    "no tensors": (".pth", _saved({}), "no tensors"),
    "training": (".pth", _saved({"epoch": 3, "state_dict": {"w": MATRIX}}), "training checkpoint.*'state_dict'"),
    "number": (".pth", _saved({"w": MATRIX, "n": 3}), "'n' is a int"),
    "sparse": (".pth", _saved({"w": MATRIX.to_sparse()}), "sparse"),
    "int16": (".pth", _saved({"w": MATRIX.short()}), "int16, expected float32, bfloat16 or float16"),
    "float8": (".safetensors", lambda p: write_checkpoint({"w": MATRIX.to(torch.float8_e5m2)}, p), "float8"),
    "uint8": (".pth", _saved({"w": MATRIX.to(torch.uint8)}), "uint8"),
    "uint8 safetensors": (".safetensors", lambda p: write_checkpoint({"w": MATRIX.byte()}, p), "uint8"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str, tmp_path: Path) -> None:
    suffix, write, message = REFUSED[case]
    path = tmp_path / f"model{suffix}"
    write(path)
    with pytest.raises(CheckpointError, match=message) as refusal:
        open_checkpoint(path)
    assert str(refusal.value).startswith(str(path))
    assert "weights_only" not in str(refusal.value)


def test_old_torch_is_refused_for_pickle_only(
    tensors: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    with pytest.raises(CheckpointError, match=r"torch 2\.10.*this is 2\.9\.1.*safetensors"):
        open_checkpoint(write_checkpoint(tensors, tmp_path / "model.pth"))
    open_checkpoint(write_checkpoint(tensors, tmp_path / "model.safetensors"))


def test_a_repository_without_its_scheme_gets_a_hint() -> None:
    with pytest.raises(CheckpointError, match=r"written hf://RWKV/RWKV7-1\.5B"):
        open_checkpoint("RWKV/RWKV7-1.5B")


@pytest.mark.parametrize(
    "path", ["a\0b.pth", "x" * 5000, "\ud800.pth", "x/" * 3000], ids=["nul", "long", "surrogate", "deep"]
)
def test_a_path_that_no_file_can_have(path: str) -> None:
    with pytest.raises(CheckpointError, match="can't be read") as refusal:
        open_checkpoint(path)
    str(refusal.value).encode()


def _damaged_pth() -> bytes:
    buffer = io.BytesIO()
    torch.save({f"blocks.{i}.att.key.weight": torch.randn(8, 8) for i in range(3)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("seed", range(60))
def test_damaged_bytes_of_a_pth_give_a_sentence(seed: int, tmp_path: Path) -> None:
    """Whatever error the loader raises; a change that leaves the file readable gives tensors."""
    content, random = bytearray(_damaged_pth()), np.random.default_rng(seed)
    pickled = content.index(b"data.pkl")
    for position in random.integers(pickled, pickled + 700, 1 + seed % 5):
        content[position] = random.integers(256)
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    try:
        checkpoint = open_checkpoint(path)
        identify(checkpoint)
    except CheckpointError as error:
        assert str(error).startswith(str(path))


@pytest.mark.parametrize("version", VERSIONS)
def test_tensors_may_be_stored_with_any_strides(version: str, tmp_path: Path) -> None:
    dense = make_checkpoint(version, n_layer=2, n_embd=128, n_ffn=64, vocab=10)
    strided = {name: tensor.transpose(0, -1).contiguous().transpose(0, -1) for name, tensor in dense.items()}
    if version in with_matrix_state():
        state = torch.randn(2, 64, 64)
        dense |= {f"blocks.{i}.att.time_state": state for i in range(2)}
        strided |= {
            f"blocks.{i}.att.time_state": state.transpose(0, -1).contiguous().transpose(0, -1) for i in range(2)
        }
    want, got = (
        Session(write_checkpoint(one, tmp_path / f"{i}.pth")).feed({0: [1, 2, 3]})[0]
        for i, one in enumerate((dense, strided))
    )
    assert torch.equal(got, want)


# Several number formats

DTYPE_CASES = {
    "float32 embedding": ({"emb.weight": torch.float32, "head.weight": torch.float32}, torch.bfloat16),
    "float64 matrix": ({"blocks.0.ffn.key.weight": torch.float64}, torch.bfloat16),
    "float16 rest": ({"emb.weight": torch.bfloat16}, torch.float16),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("case", DTYPE_CASES)
def test_matrices_of_several_dtypes(case: str, suffix: str, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    others, common = DTYPE_CASES[case]
    stored = {name: tensor.to(others.get(name, common)) for name, tensor in tensors.items()}
    checkpoint = open_checkpoint(write_checkpoint(stored, tmp_path / f"model{suffix}"))
    assert checkpoint.matrix_dtype == common
    assert checkpoint.other_dtypes == [
        torch.float32 if dtype == torch.float64 else dtype for dtype in set(others.values())
    ]


def test_a_model_of_float64_runs_in_float32(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    double = {name: tensor.double() for name, tensor in tensors.items()}
    checkpoint = open_checkpoint(write_checkpoint(double, tmp_path / "model.pth"))
    assert (checkpoint.matrix_dtype, checkpoint.other_dtypes) == (torch.float32, [])
    want, got = (
        Session(write_checkpoint(one, tmp_path / f"{i}.pth")).feed({0: [1, 2, 3]})[0]
        for i, one in enumerate((tensors, double))
    )
    assert torch.equal(got, want)


# The pin


def test_sha256_of_a_model(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = write_checkpoint(tensors, tmp_path / "model.safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256_of_model(path) == digest
    assert sha256_of_model(tmp_path) == digest
    with pytest.raises(CheckpointError, match="can't be read"):
        sha256_of_model(tmp_path / "missing.pth")


# Other formats


def test_a_format_is_an_entry_of_the_table(
    tensors: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(source: Source) -> Contents:
        flat = np.load(source.path)
        return Contents({name: StoredTensor(torch.from_numpy(flat[name])) for name in flat.files}, (source.path,))

    arrays = CheckpointFormat("npz", lambda source: source.path.suffix == ".npz", read)
    path = tmp_path / "model.npz"
    values: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.savez(path, **values)
    with pytest.raises(CheckpointError, match="not a readable PyTorch file"):
        open_checkpoint(path)
    monkeypatch.setattr(formats, "FORMATS", (arrays, *formats.FORMATS))
    checkpoint = open_checkpoint(path)
    assert checkpoint.format == "npz"
    assert checkpoint.names == tensors.keys()
    assert torch.equal(checkpoint.tensor("head.weight"), tensors["head.weight"])
    assert checkpoint.fingerprint() == hashlib.sha256(path.read_bytes()).hexdigest()
