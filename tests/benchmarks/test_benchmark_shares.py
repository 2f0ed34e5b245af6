"""Bare products, shares of a peak, and every version's rehearsal."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from versions import VARIANTS, VERSIONS

from benchmarks.bare_products import BareProducts, matrices, operations
from benchmarks.matrices import Matrix
from benchmarks.peak_shares import Work, share_rows
from benchmarks.roofline import Card, Sizes, decode_parts, prefill_seconds
from benchmarks.workloads import Point
from rwkv_batch.measure.bench import BenchModel
from rwkv_batch.measure.variants import Variant

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_matrices_are_those_that_the_model_holds(checkpoint_file, version):
    """The model uses the definitions, because kernels may pad matrices to fill their tiles."""
    path = checkpoint_file(version)
    found = matrices(path)
    model = BenchModel(path, [1], Variant("float32"), device="cpu", backend="reference").model
    assert operations(found, with_head=True) == 2 * model.matrix_bytes / 4
    assert found[-1] == Matrix("head.weight", 97, 128)
    assert operations(found, with_head=True) - operations(found, with_head=False) == 2 * 97 * 128


@pytest.mark.parametrize("version", VERSIONS)
def test_limits_are_read_from_the_version(checkpoint_file, version):
    architecture = VARIANTS[version].architecture
    sizes = Sizes(L=2, C=128, F=256, V=97, version=architecture.name)
    parts = decode_parts(sizes, 4, Card())
    assert (parts.pop("low rank") > 0) == any(matrix.is_factor for matrix in sizes.matrices)
    assert all(seconds > 0 for seconds in parts.values())
    assert prefill_seconds(sizes, 2, 8, Card()) > 0
    fields = architecture.state_fields(sizes.letters, torch.bfloat16, torch.float32)
    assert sizes.state_bytes() == 2 * sum(math.prod(field.shape) * field.dtype.itemsize for field in fields)
    expected = matrices(checkpoint_file(version, n_layer=2))
    large = [matrix.numbers for matrix in sizes.matrices if not matrix.is_factor]
    assert 2 * sum(large) + 97 * 128 == sum(m.numbers for m in expected if m.name.endswith(".weight"))


def test_factors_are_stored_the_other_way_round(checkpoint_file):
    found = {matrix.name: matrix for matrix in matrices(checkpoint_file("6.0"))}
    assert found["blocks.0.ffn.key.weight"][1:] == (256, 128)
    assert found["blocks.0.att.time_decay_w1"][1:] == (48, 128)
    assert found["blocks.0.att.time_maa_w2"][1:] == (128, 32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bare_products_run(dtype):
    products = BareProducts([Matrix("a", 32, 16), Matrix("b", 16, 32)], dtype, 3)
    assert products.seconds() > 0
    for multiply, x in products._products:
        assert multiply(x).shape == (3, 48 - x.shape[1])
        assert multiply(x).dtype == getattr(torch, dtype)


def test_shares_of_the_peaks_of_the_same_round():
    work = Work("bfloat16", token_operations=2 * 10**9, head_operations=10**9, matrix_bytes=10**9, state_bytes=10**8)
    rates = {"ours": {Point("decode", 5): [10.0, 30.0, 20.0], Point("prefill", 1): [40.0] * 3}}
    rates["ours"][Point("ragged", 5)] = [40.0] * 3
    peaks = [{"bfloat16": one, "float32": 1.0, "read": 8.0} for one in (60.0, 100.0, 100.0)]
    # The rounds decode 30, 90 and 60 Gop/s of 60, 100 and 100: 50, 90 and 60 %. They have 2, 6 and 4 steps/s of 1 GB of
    # weights and 1 GB of states: 4, 12 and 8 GB/s of 8. Prompts have 80 Gop/s.
    expected = [["ours", "decode B=5", "60%", "100%"], ["ours", "prefill B=1", "80%", ""]]
    assert share_rows(rates, {"ours": work}, peaks) == expected
    float32_is_faster = [{"bfloat16": 1.0, "float32": one["bfloat16"], "read": 0.0} for one in peaks]
    assert [row[2:] for row in share_rows(rates, {"ours": work}, float32_is_faster)] == [["60%", ""], ["80%", ""]]


def test_versions_rehearse(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.versions", "--quick", "--rounds", "1", "--batch-size", "2"]
    command += ["--variants", "float32", "--threads", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    names = [f"{version} float32" for version in ("rwkv4", "rwkv5.0", "rwkv5.1", "rwkv5.2", "rwkv6", "rwkv7")]
    assert all(result[name]["share"] > 0 for name in names)
