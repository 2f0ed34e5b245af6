"""Booking: the memory of a sequence's results does not depend on the other sequences in the batch."""

from __future__ import annotations

import numpy as np
import pytest
from fakes.model import VOCAB, make_engine

from rwkv_batch.engine.request import Request
from rwkv_batch.engine.source import Pulled
from rwkv_batch.engine.token_scores import TokenScores, TopTokens
from rwkv_batch.engine.top_table import TopTable
from rwkv_batch.sampling_params import SamplingParams


def bytes_behind(scores: TokenScores) -> int:
    """Size of the arrays that these scores keep alive."""
    arrays = [scores.logprobs, scores.is_greedy, *(scores.top or ())]
    return sum((array if array.base is None else array.base).nbytes for array in arrays)


def test_scores_of_a_long_prompt_do_not_keep_the_scores_of_other_rows_alive():
    params = SamplingParams(max_tokens=1, prompt_logprobs=3)
    prompts = [list(range(1, 9)) * (40 if row == 0 else 4) for row in range(40)]
    requests = [Request(row, prompt, params, row=row, score_start=1) for row, prompt in enumerate(prompts)]
    engine = make_engine(max_batch_size=8, max_batch_tokens=160)
    kept = []
    for _ in engine.run(Pulled(requests)):
        for slot, (parts, _) in engine.booking._scores.items():
            if len(parts) > 2 and engine.booking._requests[slot].key == 0:
                kept.append((sum(map(bytes_behind, parts[:-1])), sum(len(part) for part in parts[:-1])))
    assert kept
    per_token = 8 + 1 + 8 + 3 * (4 + 8)
    assert all(held == count * per_token for held, count in kept)


def test_tables_of_most_likely_tokens_are_as_wide_as_each_request_asks():
    """A table is freed when its last completion has ended."""
    asked = [2, 20, 2, 2, 20, 0, 5]
    prompts = [[row + 1] * (60 if count == 5 else 1) for row, count in enumerate(asked)]
    requests = [
        Request(
            row,
            prompt,
            SamplingParams(max_tokens=1 if count == 5 else 20, ignore_eos=True, logprobs=count),
            row=row,
        )
        for row, (prompt, count) in enumerate(zip(prompts, asked, strict=True))
    ]
    engine = make_engine(max_batch_size=7)
    sizes, found = [], {}
    for finished in engine.run(Pulled(requests)):
        found |= {completion.key: completion for completion in finished}
        sizes.append({count: table._ids.shape[2] for count, table in engine.booking._tops.items()})
    assert {2: 2, 20: 20, 0: 0, 5: 0} in sizes  # the last one has not read its prompt
    assert sizes[-1] == {}
    for row, count in enumerate(asked):
        alone = {c.key: c for c in make_engine().generate(Pulled([requests[row]]))}[row]
        assert [entry.top_ids for entry in found[row].logprobs] == [entry.top_ids for entry in alone.logprobs]
        assert {len(entry.top_ids) for entry in found[row].logprobs} == {min(count, VOCAB)}


def test_a_top_table_grows_with_the_open_completions():
    table = TopTable()
    places = [table.open() for _ in range(3)]
    assert len(set(places)) == 3 and not table.is_empty
    for number in range(40):
        ids = np.array([[number, place] for place in places], np.int32)
        table.write(np.array(places), np.full(3, number), TopTokens(np.array(places) + 1, ids, -ids.astype(float)))
    for place in places:
        scores = table.close(place, np.zeros(40))
        assert [entry.top_ids for entry in scores] == [[number, place] for number in range(40)]
        assert [entry.rank for entry in scores] == [place + 1] * 40
    assert table.is_empty


def test_scores_are_indexed_like_a_list():
    scores = TokenScores(np.array([-1.0, -2.0, -3.0]), np.array([True, False, False]))
    assert [scores[i].logprob for i in (0, 2, -1)] == [-1.0, -3.0, -3.0]
    with pytest.raises(IndexError):
        scores[3]
