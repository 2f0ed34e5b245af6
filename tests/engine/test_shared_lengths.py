"""Sorted prompts and shared lengths: the native library and numpy equal the definition in Python's lists."""

from __future__ import annotations

from itertools import pairwise, takewhile

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.engine import shared_lengths
from rwkv_batch.engine.shared_lengths import sorted_with_shared_lengths


@pytest.fixture(params=["native", "numpy"], scope="module")
def kind(request):
    """The native library, then numpy."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            patch.setattr(shared_lengths, "unavailable", lambda: "no compiler")
        elif reason := unavailable():
            pytest.skip(reason)
        yield request.param


def check(prompts: list[list[int]]) -> None:
    order, shared = sorted_with_shared_lengths([np.array(prompt, dtype=np.int32) for prompt in prompts])
    assert (order.dtype, shared.dtype) == (np.int64, np.int64)
    expected = sorted(range(len(prompts)), key=lambda i: prompts[i])
    assert order.tolist() == expected
    common = [
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompts[a], prompts[b], strict=False)))
        for a, b in pairwise(expected)
    ]
    assert shared.tolist() == [0, *common][: len(prompts)]


# Few tokens, so that equal beginnings and equal prompts are common; among them ids whose bytes sort in another order.
tokens = st.sampled_from([0, 1, 2, 255, 256, 65535, 65536, 2**31 - 1])
beginnings = st.lists(tokens, max_size=4)


@given(prompts=st.lists(st.builds(lambda a, b, c: a + b + c, beginnings, st.sampled_from([[], [7] * 20]), beginnings)))
@example(prompts=[])
@example(prompts=[[], [0], [], [0, 0], [0]])
@example(prompts=[[2**31 - 1, 0], [2**31 - 1], [0, 2**31 - 1], [1, 0]])
def test_order_and_shared_lengths_equal_the_definition(kind, prompts: list[list[int]]):
    check(prompts)


def test_many_prompts_with_a_common_beginning_equal_the_definition(kind):
    random = np.random.default_rng(0)
    beginning = random.integers(0, 65536, 300).tolist()
    check([beginning[: random.integers(0, 300)] + random.integers(0, 3, 5).tolist() for _ in range(500)])


def test_prompts_may_be_columns_of_arrays(kind):
    """The tokens of a column are not contiguous in memory."""
    columns = np.array([[3, 1], [2, 1], [5, 9]], dtype=np.int32)
    order, shared = sorted_with_shared_lengths([columns[:, 0], columns[:, 1], columns[:2, 1]])
    assert (order.tolist(), shared.tolist()) == ([2, 1, 0], [0, 2, 0])


def test_prompts_that_are_beginnings_of_others_equal_the_definition(kind):
    random = np.random.default_rng(1)
    prompt = random.integers(0, 3, 2000).tolist()
    check([prompt[:length] for length in random.permutation(np.arange(0, 2000, 9))])
    check([prompt[: 9 * i] + [5] * (i % 2) for i in reversed(range(220))])
