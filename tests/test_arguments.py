"""Sampling parameters of a call are copies: a caller may change its own at any time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from rwkv_batch import SamplingParams
from rwkv_batch.arguments import checked_params, params_list


def test_parameters_that_a_caller_changes_in_between_are_those_of_their_time() -> None:
    params = SamplingParams(max_tokens=1)

    def given() -> Iterator[SamplingParams]:
        yield params
        params.max_tokens = 2
        yield from (params, params)

    first, second, third = checked_params(given())
    assert (first.max_tokens, second.max_tokens) == (1, 2)
    assert second is third, "rows that share parameters share their copy"


def test_parameters_for_all_prompts_are_copied_once() -> None:
    params = SamplingParams(max_tokens=1)
    one, two = islice(checked_params(params), 2)
    listed = params_list(params, 2)
    assert one is two and listed[0] is listed[1]
    assert one == listed[0] == params
    params.max_tokens = 3
    assert one.max_tokens == listed[0].max_tokens == 1


def test_parameters_of_a_list_are_copied_once_each() -> None:
    params = SamplingParams(max_tokens=1)
    first, second, third = params_list([params, SamplingParams(), params], 3)
    assert first is third and first is not params
    assert (first, second) == (params, SamplingParams())
