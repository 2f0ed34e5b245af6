"""The checks' oracles: definitions in float64, and the known tokens of the demo model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from float64_reference import Float64Model
from kernels.kernel_cases import Case, expected, in_float64, make_case, run
from oracle import Oracle
from safetensors.torch import load_file
from torch import Tensor

from rwkv_batch.checks.calls import RECURRENCES, VARIANTS
from rwkv_batch.demo.known import known
from rwkv_batch.model_summary import DEMO_MODEL


def in_double(case: Case) -> Case:
    copy = case.copy()
    arguments = {name: in_float64(x) for name, x in copy.arguments.items()}
    return Case(case.variant, arguments, {name: pool.double() for name, pool in copy.pools.items()}, case.rows)


@pytest.mark.parametrize("variant", VARIANTS)
def test_definitions_of_recurrences_can_be_computed_in_float64(variant: str) -> None:
    case = in_double(make_case(variant))
    out, after = run(RECURRENCES[case.op].definition, case)
    want, states = expected(case)
    torch.testing.assert_close(out[case.tokens], want[case.tokens], rtol=1e-11, atol=1e-11)
    for name, state in after.states.items():
        torch.testing.assert_close(state, states[name], rtol=1e-11, atol=1e-11)


@pytest.fixture(scope="module")
def demo_tensors() -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in load_file(DEMO_MODEL).items()}


def test_known_tokens_are_those_of_float64(demo_tensors: dict[str, Tensor]) -> None:
    model = Float64Model("7.0", demo_tensors)
    for prompt_ids, token_ids, logprobs, leads in known():
        state = model.initial_state(1)
        for token in prompt_ids:
            logits, state = model.step(torch.tensor([token]), state)
        for token, logprob, lead in zip(token_ids, logprobs, leads, strict=True):
            (best, second), (likeliest, _) = (part.tolist() for part in logits[0].log_softmax(0).topk(2))
            assert (token, logprob, lead) == (
                likeliest,
                pytest.approx(best, abs=2e-5),
                pytest.approx(best - second, abs=4e-5),
            )
            logits, state = model.step(torch.tensor([token]), state)


def test_known_tokens_are_those_of_the_rwkv_package(demo_tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "demo.pth"
    torch.save(demo_tensors, path)
    with Oracle(path, "7.0") as oracle:
        for prompt_ids, token_ids, logprobs, _ in known():
            _, scores, is_greedy = oracle.loglikelihood(prompt_ids, token_ids)
            assert is_greedy
            assert scores == pytest.approx(logprobs, abs=1e-4)
