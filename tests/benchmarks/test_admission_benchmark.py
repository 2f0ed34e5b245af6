"""The simulation of admission delays: the engine records its steps, and delays do what the benchmark says."""

import pytest

from benchmarks.admission import simulate
from benchmarks.roofline import MODELS, Card


@pytest.mark.parametrize("with_logprobs", [0.0, 0.3])
def test_fewer_than_2_percent_of_the_steps_are_not_recorded(with_logprobs):
    """Prompts and completions of 100 tokens, 256 slots."""
    found = simulate(MODELS["1.5B"], Card(), 256, 30, 2, with_logprobs)
    assert found.share_unrecorded < 0.02
    assert found.share_with_prompts > 0.05


def test_waiting_slots_make_fewer_steps_read_prompts():
    none, some = (simulate(MODELS["1.5B"], Card(), 128, delay, 3) for delay in (0, 30))
    assert some.share_with_prompts < 0.9 * none.share_with_prompts
    assert none.wait_ms < some.wait_ms < none.wait_ms + 30
    assert some.share_in_use < none.share_in_use
