"""Bans that leave nothing to sample are found, and only those: compared with sets of ids."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.engine.permitted import NOTHING, permitted_ids, reason_of_nothing
from rwkv_batch.sampling_params import SamplingParams

V = 5
ids = st.lists(st.integers(0, V - 1), max_size=V)


def reason(sampleable, **settings):
    params = SamplingParams(**settings)
    permitted = permitted_ids(params, sampleable)
    return reason_of_nothing(params, sampleable if permitted is None else permitted)


@given(
    sampleable=st.lists(st.booleans(), min_size=V, max_size=V),
    allowed=st.none() | ids.filter(bool),
    bad=st.none() | ids,
    stops=st.none() | ids,
    min_tokens=st.integers(0, 2),
    ignore_eos=st.booleans(),
    max_tokens=st.sampled_from([2, 3, None]),
)
def test_something_is_left_or_the_reason_is_given(sampleable, allowed, bad, stops, min_tokens, ignore_eos, max_tokens):
    left = {i for i in range(V) if sampleable[i]} & set(range(V) if allowed is None else allowed) - set(bad or ())
    left_early = left - {0, *(stops or ())} if min_tokens else left
    left_after_the_end = left - {0} if ignore_eos else left
    found = reason(
        np.array(sampleable),
        allowed_token_ids=allowed,
        bad_token_ids=bad,
        stop_token_ids=stops,
        min_tokens=min_tokens,
        ignore_eos=ignore_eos,
        max_tokens=max_tokens,
    )
    assert (found is None) == bool(left and left_early and left_after_the_end)
    assert found is None or found.startswith(NOTHING)


ALL = np.ones(V, bool)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"allowed_token_ids": [1], "bad_token_ids": [1]}, "allowed_token_ids and bad_token_ids leave no token"),
        ({"bad_token_ids": range(V)}, "bad_token_ids leaves no token"),
        (
            {"allowed_token_ids": [0], "min_tokens": 1},
            r"min_tokens \(1\) bans the end of text, and no other token is left",
        ),
        (
            {"allowed_token_ids": [0, 2], "min_tokens": 1, "stop_token_ids": [2]},
            r"min_tokens \(1\) bans the end of text and stop_token_ids, and no other token is left",
        ),
        ({"allowed_token_ids": [0], "ignore_eos": True}, r"but the end of text \(token 0\), and ignore_eos asks for"),
    ],
)
def test_the_reason_names_the_fields(settings, expected):
    settings = {name: list(value) if isinstance(value, range) else value for name, value in settings.items()}
    found = reason(ALL, **settings)
    assert re.match(f"nothing may be sampled:? {expected}", found), found


def test_nothing_has_to_be_left_where_nothing_is_sampled():
    assert reason(ALL, bad_token_ids=[*range(V)], max_tokens=0) is None


def test_the_ids_of_the_vocabulary_stay_as_they_are():
    sampleable = np.array([True, True, False, True, True])
    permitted = permitted_ids(SamplingParams(allowed_token_ids=[1, 2, 3], bad_token_ids=[3]), sampleable)
    assert permitted.tolist() == [False, True, False, False, False]
    assert sampleable.sum() == 4
    assert permitted_ids(SamplingParams(bad_token_ids=[]), sampleable) is None
