"""Reading .safetensors files: the same as the safetensors package, and a complaint where something does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rwkv_batch.models.safetensors_file import FormatError, read


def write(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_as_the_package_reads_it(tmp_path: Path) -> None:
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8)
    tensors = {str(dtype): (torch.randn(3, 5) * 9).to(dtype) for dtype in dtypes}
    tensors |= {"bytes": torch.arange(7, dtype=torch.uint8), "flags": torch.tensor([True, False])}
    tensors |= {"float8": torch.randn(4).to(torch.float8_e5m2), "none": torch.empty(0, 3), "one": torch.tensor(2.5)}
    path = tmp_path / "some.safetensors"
    save_file(tensors, path, {"format": "pt", "more": "é"})
    found, metadata = read(path)
    with safe_open(path, framework="pt") as file:
        assert metadata == file.metadata()
        assert found.keys() == set(file.keys())
        for name, tensor in found.items():
            right = file.get_tensor(name)
            assert (tensor.dtype, tensor.shape) == (right.dtype, right.shape)
            assert torch.equal(tensor.view(-1).view(torch.uint8), right.view(-1).view(torch.uint8)), name


@pytest.mark.parametrize("spaces", range(8))
def test_data_may_begin_anywhere(spaces: int, tmp_path: Path) -> None:
    values = torch.randn(6)
    header = json.dumps({"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode() + b" " * spaces
    tensors, metadata = read(write(tmp_path / "x.safetensors", header, values.numpy().tobytes()))
    assert torch.equal(tensors["x"], values.view(2, 3))
    assert metadata == {}


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD: dict[str, tuple[Any, bytes, str]] = {
    "data that ends early": ({"x": ENTRY}, b"1234567", "'x', F32 \\[2\\], is said to be bytes 0 to 8 of 7"),
    "a shape that needs more": ({"x": ENTRY | {"shape": [3]}}, b"12345678", "bytes 0 to 8 of 8"),
    "a start before the data": ({"x": ENTRY | {"data_offsets": [-8, 0]}}, b"12345678", "bytes -8 to 0"),
    "a dtype that torch lacks": ({"x": ENTRY | {"dtype": "F4"}}, b"12345678", "dtype 'F4'"),
    "no offsets": ({"x": {"dtype": "F32", "shape": [2]}}, b"12345678", "not understood: KeyError"),
    "no JSON": (b"{nonsense", b"", "not understood: JSONDecodeError"),
    "a list": ([1, 2], b"", "not understood: AttributeError"),
    "no text": (b"\x80 no text", b"", "not understood: UnicodeDecodeError"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named(name: str, tmp_path: Path) -> None:
    header, data, message = BAD[name]
    with pytest.raises(FormatError, match=message):
        read(write(tmp_path / "x.safetensors", header, data))


def test_a_header_longer_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((1000).to_bytes(8, "little") + b"{}")
    with pytest.raises(FormatError, match="a header of 1000 bytes in a file of 10"):
        read(path)
