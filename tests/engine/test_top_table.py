"""The top table: each completion gets back its own entries, also when the table has grown."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.engine.token_scores import TopTokens
from rwkv_batch.engine.top_table import TopTable


@given(
    count=st.integers(0, 5),
    completions=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40)), min_size=1, max_size=30),
)
def test_each_completion_gets_back_what_was_written_for_it(count, completions):
    """The expected entries are lists for each completion, which is given as (first step, number of tokens)."""
    table, random = TopTable(), np.random.default_rng(0)
    running, written = {}, {i: [] for i in range(len(completions))}
    for step in range(62):
        for i, (first, _) in enumerate(completions):
            if first == step:
                running[i] = table.open()
        assert len(set(running.values())) == len(running)
        for i in list(running):
            length = completions[i][1]
            if len(written[i]) < length:
                continue
            found = table.close(running.pop(i), np.arange(float(length)))
            assert found.logprobs.tolist() == list(range(length))
            assert found.is_greedy.tolist() == [rank == 1 for rank, _, _ in written[i]]
            if length:
                columns = [list(column) for column in zip(*written[i], strict=True)]
                assert [column.tolist() for column in found.top] == columns
        ranks = random.integers(1, 4, len(running))
        shape = len(running), count
        top = TopTokens(ranks, random.integers(0, 99, shape).astype(np.int32), -random.random(shape))
        numbers = np.array([len(written[i]) for i in running], np.int64)
        if running:
            table.write(np.array(list(running.values()), np.int64), numbers, top)
        for i, *row in zip(running, *(column.tolist() for column in top), strict=True):
            written[i].append(row)
    assert not running


def test_a_place_is_free_again_once_its_completion_has_ended():
    table, places = TopTable(), set()
    for _ in range(100):
        places.add(table.open())
        assert not table.is_empty
        table.close(max(places), np.zeros(0))
        assert table.is_empty
    assert len(places) == 1
