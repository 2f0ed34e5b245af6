"""The sizes of recorded steps: every step has one, and padding is bounded."""

import pytest

from rwkv_batch.engine.recorded_sizes import RecordedSizes, StepSize, at_least, decode_sizes


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (2, [1, 2]), (100, [1, 2, 4, 8, 16, 32, 64, 96, 100])])
def test_decode_sizes_end_with_the_largest(most, sizes):
    assert decode_sizes(most) == sizes


@pytest.mark.parametrize(("slots", "tokens"), [(1, 1), (1, 64), (3, 3), (5, 40), (256, 4352), (1024, 5120)])
def test_every_step_has_a_size_that_is_recorded(slots, tokens):
    sizes = RecordedSizes(slots, tokens)
    assert len({*sizes.steps}) == len(sizes.steps)
    for sequences in {1, 2, slots // 8, slots // 8 + 1, slots - 1, slots} - {0}:
        if sequences > slots:
            continue
        found = sizes.step(sequences, sequences, has_prompts=False)
        assert found in sizes.steps and found.num_sequences == found.num_tokens >= sequences
        for num_tokens in range(sequences, tokens + 1, 7):
            found = sizes.step(sequences, num_tokens, has_prompts=True)
            assert found in sizes.steps and found.num_sequences in sizes.draws
            assert found.num_sequences >= sequences and num_tokens <= found.num_tokens <= tokens
            beside = max(num_tokens - found.num_sequences, 0)
            assert found.num_tokens - found.num_sequences - beside <= max(64, beside / 4)
    assert at_least(sizes.tops, slots) == slots


def test_the_largest_step_is_recorded_first():
    steps = RecordedSizes(256, 4352).steps
    assert steps[0].num_tokens == 4352 and steps[-1] == StepSize(1, 1, False)
    assert len(RecordedSizes(256, 4352)) < 80
