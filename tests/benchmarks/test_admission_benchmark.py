"""The simulation of admission delays: the engine records its steps, and delays do what the benchmark says."""

import pytest

from benchmarks.admission import simulate


def seconds(decoding, prompts):
    """Of a step: about those of RWKV-7 1.5B on an H100."""
    return 4e-3 + 8e-6 * decoding + 2.5e-5 * max(prompts, default=0) + 8e-6 * sum(prompts)


@pytest.mark.parametrize("with_logprobs", [0.0, 0.3])
def test_fewer_than_2_percent_of_the_steps_are_not_recorded(with_logprobs):
    """Prompts and completions of 100 tokens, 256 slots."""
    found = simulate(seconds, 256, 30, 2, with_logprobs)
    assert found.share_unrecorded < 0.02
    assert found.share_with_prompts > 0.05


def test_waiting_slots_make_fewer_steps_read_prompts():
    none, some = (simulate(seconds, 128, delay, 3) for delay in (0, 30))
    assert some.share_with_prompts < 0.9 * none.share_with_prompts
    assert none.wait_ms < some.wait_ms < none.wait_ms + 30
    assert some.share_in_use < none.share_in_use


def test_chunks_have_all_tokens_beside_one_of_each_row():
    asked = set()

    def noted(decoding, prompts):
        asked.add((decoding, prompts))
        return seconds(decoding, prompts)

    simulate(noted, 64, 0, 2)
    for decoding, prompts in asked:
        rows = decoding + len(prompts)
        assert sum(prompts) + rows <= 64 + 4096 and max(prompts, default=1) <= 100
    assert {prompts for _, prompts in asked} > {()}
