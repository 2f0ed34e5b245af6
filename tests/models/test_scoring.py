"""`Model.score` runs the implementation of `score` that the table of ops names."""

from __future__ import annotations

from importlib import import_module
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint
from running import Session

from rwkv_batch.model_summary import inspect_model
from rwkv_batch.models import scoring
from rwkv_batch.models.matrices.quantization import QUANTIZATIONS
from rwkv_batch.models.placement import LayerPlacement, Placement
from rwkv_batch.ops import Implementation, OpTable
from rwkv_batch.settings import EngineSettings, ModelSettings

SIZES: dict[str, Any] = dict(n_layer=1, n_embd=64, n_att=64, n_ffn=64, head_size=16, vocab=97)
CPU, OTHER = torch.device("cpu"), torch.device("cpu:1")
"""The second stands for another device: it is not equal to the first."""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_checkpoint(make_checkpoint("7.0", **SIZES), tmp_path_factory.mktemp("scoring") / "model.pth")


def check_score(model):
    """`Model.score` calls the table's `score` once; results are those of float64 from the model's own logits."""
    served = model.ops.implementations
    spy = Mock(side_effect=served["score"].function)
    model.ops = OpTable(served | {"score": Implementation(spy)}, model.ops.choices)
    hidden = torch.randn(70, SIZES["n_embd"], generator=torch.Generator().manual_seed(2))
    targets, rows = torch.arange(70) % SIZES["vocab"], torch.arange(70)
    logprobs, is_greedy = model.score(hidden, targets, rows)
    spy.assert_called_once()
    right = torch.log_softmax(model.logits(hidden).double(), 1)
    torch.testing.assert_close(logprobs, right.gather(1, targets[:, None])[:, 0], rtol=0, atol=2e-6)
    assert torch.equal(is_greedy, right.argmax(1) == targets)


def summary_of(path, quantization=None):
    model = ModelSettings(path, tokenizer=None, dtype="float32", quantization=quantization)
    return inspect_model(model, EngineSettings("cpu", "triton"))


def choice_of(table):
    (choice,) = (choice for choice in table.choices if choice.op == "score")
    return choice.backend, choice.refused


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_definition_scores_with_a_quantized_head(quantization, path):
    pytest.importorskip("triton")
    summary = summary_of(path, quantization)
    reason = f"triton: the head's matrix is {quantization}, expected a dense one"
    (table,) = summary.tables.values()
    assert choice_of(table) == ("reference", (reason,))
    assert {"op": "score", "backend": "reference", "not_used": [reason]} in summary.describe()["backends"]
    assert table.score is scoring.score
    check_score(Session(path, quantization=quantization, backend="triton").model)


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_the_kernel_scores_with_a_dense_head(batch_invariant, path):
    kernel = pytest.importorskip("rwkv_batch.triton_kernels.score")
    (table,) = summary_of(path).tables.values()
    assert choice_of(table) == ("triton", ())
    assert table.score is kernel.score
    check_score(Session(path, backend="triton", batch_invariant=batch_invariant).model)


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_the_kernel_scores_where_none_serves_linear(batch_invariant, path, monkeypatch):
    """The definition of `linear` multiplies the head. Its weight stays a tensor, which the kernel of `score` reads."""
    pytest.importorskip("triton")
    monkeypatch.setitem(import_module("rwkv_batch.ops")._AUTO, "cpu", ("triton", "reference"))
    linear = import_module("rwkv_batch.triton_kernels.linear")
    monkeypatch.setattr(linear, "unsupported_reason", lambda *_: "does not compile")
    model = Session(path, batch_invariant=batch_invariant).model
    assert [choice.backend for choice in model.ops.choices if choice.op in ("linear", "score")] == [
        "reference",
        "triton",
    ]
    check_score(model)


def test_the_definition_scores_with_a_head_on_another_device(path):
    pytest.importorskip("triton")
    there = LayerPlacement(OTHER, torch.float32)
    placement = Placement(CPU, torch.float32, None, torch.float32, (there,), head_device=OTHER)
    model = Session(path, placement=placement, backend="triton").model
    assert choice_of(model.ops) == ("reference", ("triton: the head's matrix is on another device",))
    check_score(model)
