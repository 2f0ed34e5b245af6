"""Every version through the public face: completions, scores, prefixes, number formats and reports."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from float64_reference import Float64Model
from versions import VARIANTS, VERSIONS

from rwkv_batch import LLM, SamplingParams
from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.models.matrices.quantization import QUANTIZATIONS
from rwkv_batch.run import main

SIZES: dict[str, Any] = dict(n_layer=2, n_embd=64, n_ffn=96, head_size=32, vocab=97)
SHARED = [(7 * i) % 96 + 1 for i in range(20)]
PROMPTS = [[5], [9, 8, 7, 6, 5, 4, 3, 2, 1] * 3, *([*SHARED, i] for i in range(5)), SHARED]
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=6, seed=3, ignore_eos=True)
TOLERANCE = 1e-4
"""Largest error of a log-probability. Its logits have a standard deviation of 2.5."""
LARGEST_CHANGE = {"int8": 0.25, "w8a8": 0.25}
"""Weight format → the most by which it may change the mean log-probability of a text's tokens."""

pytestmark = pytest.mark.parametrize("version", VERSIONS)


def load(checkpoint_file, version: str, **settings) -> LLM:
    """Fewer slots than prompts, and fewer tokens a step than a prompt has."""
    path = checkpoint_file(version, **SIZES)
    return LLM(path, tokenizer=None, device="cpu", max_batch_size=3, max_batch_tokens=8, **settings)


def as_prompts(prompts: list[list[int]]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": ids} for ids in prompts]


def right_logprobs(version: str, token_ids: list[int]) -> torch.Tensor:
    """[T, V] float64: of what follows each token."""
    return Float64Model(version, make_checkpoint(version, **SIZES)).sequence([token_ids])[0][0].log_softmax(-1)


def test_completions_and_scores_equal_float64(version, checkpoint_file):
    llm = load(checkpoint_file, version)
    outputs = llm.generate(as_prompts(PROMPTS), GREEDY)
    scores = llm.score([(ids, out.outputs[0].token_ids) for ids, out in zip(PROMPTS, outputs, strict=True)])
    for ids, output, score in zip(PROMPTS, outputs, scores, strict=True):
        completion = output.outputs[0]
        assert len(completion.token_ids) == GREEDY.max_tokens
        logprobs = right_logprobs(version, [*ids, *completion.token_ids])[len(ids) - 1 : -1]
        right = logprobs.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        assert torch.all(right >= logprobs.max(dim=1).values - TOLERANCE)
        assert completion.token_logprobs == pytest.approx(right.tolist(), abs=TOLERANCE)
        assert score.token_logprobs == pytest.approx(right.tolist(), abs=TOLERANCE)
    llm.check_integrity()


def test_rows_depend_on_nothing_but_themselves(version, checkpoint_file):
    """A row gives the same bits with and without shared prefixes, alone and among others."""
    together = load(checkpoint_file, version, batch_invariant=True)
    expected = [out.outputs[0] for out in together.generate(as_prompts(PROMPTS), SAMPLED)]
    assert together.stats().prompt_tokens < sum(map(len, PROMPTS)), "no prefix was shared"
    apart = load(checkpoint_file, version, batch_invariant=True, prefix_sharing=False)
    found = [out.outputs[0] for out in apart.generate(as_prompts(PROMPTS), SAMPLED)]
    assert apart.stats().prompt_tokens == sum(map(len, PROMPTS))
    alone = apart.generate(as_prompts(PROMPTS[:1]), SAMPLED)[0].outputs[0]
    for one, other in zip([*found, alone], [*expected, expected[0]], strict=True):
        assert (one.token_ids, one.token_logprobs) == (other.token_ids, other.token_logprobs)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_quantized_scores_stay_near(version, quantization, checkpoint_file):
    pairs = [(ids, SHARED) for ids in PROMPTS]
    exact, coarse = (
        [score.logprob / len(SHARED) for score in load(checkpoint_file, version, **settings).score(pairs)]
        for settings in ({}, {"quantization": quantization})
    )
    assert coarse != exact
    assert quantization in LARGEST_CHANGE, "state the format's largest change of a score in LARGEST_CHANGE"
    assert coarse == pytest.approx(exact, abs=LARGEST_CHANGE[quantization])


def test_reports_name_version_and_backends(version, checkpoint_file):
    variant, about = VARIANTS[version], load(checkpoint_file, version).summary.describe()
    json.dumps(about)
    assert about["version"] == variant.architecture.name
    assert {"n_layer": 2, "n_embd": 64, "n_att": 64, "n_ffn": 96, "vocab_size": 97}.items() <= about["sizes"].items()
    backends = {entry["op"]: entry["backend"] for entry in about["backends"]}
    assert {op.name for op in variant.architecture.ops} <= backends.keys()
    required = {backends[op.name] for op in variant.architecture.ops if not op.optional}
    if not unavailable():
        assert required == ({"cpu"} if "cpu" in variant.kernels else {"cpu", "reference"})


def test_a_job_ends_with_a_report(version, checkpoint_file, tmp_path):
    config, rows = tmp_path / "job.yaml", [json.dumps({"prompt_token_ids": ids}) for ids in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    settings = {
        "task": "generate",
        "model": {"path": str(checkpoint_file(version, **SIZES)), "tokenizer": None},
        "input": {"path": str(tmp_path / "prompts.jsonl")},
        "sampling": {"max_tokens": 3, "ignore_eos": True},
        "output": {"path": str(tmp_path / "out")},
    }
    config.write_text(json.dumps(settings))
    assert main([str(config)]) == 0
    report = json.loads((tmp_path / "out.rwkv_batch" / "report.json").read_text())
    assert (report["rows"], report["tokens"]["completion_tokens"]) == ({"ok": len(PROMPTS)}, 3 * len(PROMPTS))
    assert report["runs"][0]["model"]["version"] == VARIANTS[version].architecture.name
