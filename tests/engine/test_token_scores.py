"""`TokenScores`: arrays behave like lists of `Logprobs`."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.engine.token_scores import Logprobs, TokenScores, TopTokens

K = 2
entries = st.lists(
    st.builds(
        Logprobs,
        st.floats(-50, 0),
        st.booleans(),
        st.integers(1, 99),
        st.lists(st.integers(0, 99), min_size=K, max_size=K),
        st.lists(st.floats(-50, 0), min_size=K, max_size=K),
    ),
    max_size=5,
)


def plain(entries):
    return [entry._replace(rank=0, top_ids=[], top_logprobs=[]) for entry in entries]


def scores(entries, with_top):
    top = TopTokens(
        np.array([entry.rank for entry in entries], np.int64),
        np.array([entry.top_ids for entry in entries], np.int32).reshape(-1, K),
        np.array([entry.top_logprobs for entry in entries], np.float64).reshape(-1, K),
    )
    logprobs = np.array([entry.logprob for entry in entries], np.float64)
    is_greedy = np.array([entry.is_greedy for entry in entries], bool)
    return TokenScores(logprobs, is_greedy, top if with_top else None)


@pytest.mark.parametrize("with_top", [False, True])
@given(parts=st.lists(entries, max_size=4), count=st.none() | st.integers(0, K))
def test_parts_are_joined_cut_and_read_like_lists(with_top, parts, count):
    joined = TokenScores.join([scores(part, with_top) for part in parts])
    expected = [entry for part in parts for entry in (part if with_top else plain(part))]
    assert list(joined) == expected
    assert [joined[i] for i in range(len(joined))] == expected
    assert (joined.logprobs.dtype, joined.is_greedy.dtype) == (np.float64, bool)
    assert joined.num_alternatives == (K if with_top and parts else 0)
    fewer = [e._replace(top_ids=e.top_ids[:count], top_logprobs=e.top_logprobs[:count]) for e in expected]
    assert list(joined.part(slice(1, 3), count)) == fewer[1:3]
    assert list(joined.part(np.arange(len(fewer)) % 2 == 1, count)) == fewer[1::2]
