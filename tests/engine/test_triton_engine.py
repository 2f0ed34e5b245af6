"""Whole engines with interpreted Triton kernels: tokens and scores equal the reference's, in recorded steps too."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from versions import served_by

from rwkv_batch import ops
from rwkv_batch.engine.engine import Engine, EngineLimits
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.engine.slot_tables import Vocabulary
from rwkv_batch.engine.source import Pulled
from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.model import Model, ModelFile
from rwkv_batch.models.placement import place
from rwkv_batch.ops import resolve
from rwkv_batch.sampling_params import SamplingParams

SIZES = dict(n_layer=2, n_embd=32, n_att=32, n_ffn=64, head_size=16, vocab=97)
PARAMS = [
    SamplingParams(max_tokens=3, temperature=0.0),
    SamplingParams(max_tokens=4, top_p=0.8, presence_penalty=0.5, frequency_penalty=0.2, penalty_decay=0.9),
    SamplingParams(max_tokens=3, top_k=5, min_tokens=2, logit_bias={4: 3.0}),
    SamplingParams(max_tokens=2, top_p=0.6, top_p_order="rwkv", temperature=1.2, allowed_token_ids=list(range(50))),
    SamplingParams(max_tokens=0),
]


def make_engine(path, backend, state_dtype="float32", batch_invariant=False, limits=(3, 8), **settings):
    file = ModelFile.open(open_checkpoint(path))
    placement = place(device="cpu", dtype="float32", state_dtype=state_dtype)
    specs = dict.fromkeys((*file.ops, *Sampler.OPS))
    table = resolve(specs, backend, placement.device, placement.dtype, file.sizes, placement.state_dtype)
    model = Model(file, placement, table, batch_invariant=batch_invariant)
    return Engine(model, Vocabulary.plain(file.sizes["V"]), EngineLimits(*limits), **settings)


def requests():
    prompts = torch.randint(1, 97, (5, 9), generator=torch.Generator().manual_seed(5)).tolist()
    return [
        Request(
            row, prompt[: 1 + (5 * row) % 9], PARAMS[row % len(PARAMS)], row=row, score_start=1 if row > 2 else None
        )
        for row, prompt in enumerate(prompts)
    ]


def outcomes(engine):
    found = {}
    for completion in engine.generate(Pulled(requests())):
        scores = [entry.logprob for entry in completion.prompt_scores or ()]
        found[completion.key] = completion.token_ids.tolist(), [*completion.token_logprobs, *scores]
    engine.check_integrity()
    return found


def assert_same(got, want, tolerance=1e-4):
    assert {key: token_ids for key, (token_ids, _) in got.items()} == {
        k: token_ids for k, (token_ids, _) in want.items()
    }
    for key, (_, logprobs) in got.items():
        assert logprobs == pytest.approx(want[key][1], abs=tolerance)


@pytest.mark.parametrize("version", served_by("triton"))
def test_tokens_are_those_of_the_reference(version, checkpoint_file):
    # Only RWKV-7's first layer differs from the others, so that it takes two layers to cover both.
    path = checkpoint_file(version, **SIZES | {"n_layer": 2 if version.startswith("7") else 1})
    engine = make_engine(path, "triton", run_ahead=True, record_steps=True)
    assert engine.model.ops.can_be_recorded
    assert_same(outcomes(engine), outcomes(make_engine(path, "reference")))


@pytest.mark.parametrize("names", ["low_rank deep_embed score", "linear sample", "shift_lerp wkv7"])
def test_ops_that_do_not_compile_are_served_among_the_others(names, checkpoint_file, monkeypatch):
    refused = set(names.split())
    for op in refused:
        module = import_module(f"rwkv_batch.triton_kernels.{op}")
        monkeypatch.setattr(module, "unsupported_reason", lambda *_: "does not compile")
    monkeypatch.setitem(ops._AUTO, "cpu", ("triton", "reference"))
    path = checkpoint_file("7.0de", **SIZES)
    engine = make_engine(path, "auto", run_ahead=True)
    table = engine.model.ops
    assert {choice.op for choice in table.choices if choice.is_fallback} == refused
    assert not table.can_be_recorded  # so that no step is recorded on a GPU
    assert_same(outcomes(engine), outcomes(make_engine(path, "reference")))


def test_a_half_precision_state_gives_the_same_tokens(checkpoint_file):
    path = checkpoint_file("7.0", **SIZES)
    settings = dict(state_dtype="float16")
    got = outcomes(make_engine(path, "triton", **settings, run_ahead=True, record_steps=True))
    # The state is rounded stochastically, and a last bit of a sum may change its rounding.
    assert_same(got, outcomes(make_engine(path, "reference", **settings)), tolerance=5e-3)


def test_batch_invariance_is_to_the_bit(checkpoint_file):
    """The engines differ in slots, chunks and neighbors, and only one of them records steps."""
    path = checkpoint_file("7.0", **SIZES)
    together = outcomes(make_engine(path, "triton", batch_invariant=True, run_ahead=True, record_steps=True))
    engine = make_engine(path, "triton", batch_invariant=True, limits=(5, 13), record_steps=False)
    assert together == outcomes(engine)
