"""The library's scores, over a tiny random model with byte tokens."""

from __future__ import annotations

import pytest

from rwkv_batch import LLM, SamplingParams
from rwkv_batch.models.scoring import ROWS_AT_ONCE

VOCAB = 257


def test_scores_equal_the_rwkv_package(path, llm, oracle):
    pairs = [([5, 6, 7], [8, 9]), ([1], [2]), (list(range(1, 60)), list(range(60, 90))), ([0], [256] * 40)]
    for (context, continuation), got in zip(pairs, llm.score(pairs), strict=True):
        total, each, is_greedy = oracle("7.0", path).loglikelihood(context, continuation)
        assert got.logprob == pytest.approx(total, abs=1e-3)
        assert got.token_logprobs == pytest.approx(each, abs=1e-4)
        assert (got.is_greedy, got.num_tokens) == (is_greedy, len(continuation))


def test_greedy_continuations_are_found(llm):
    greedy = llm.generate(["qrs"], SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True))[0].outputs[0]
    context = [byte + 1 for byte in b"qrs"]
    assert llm.score([(context, greedy.token_ids)])[0].is_greedy
    other = [*greedy.token_ids[:-1], (greedy.token_ids[-1] + 1) % VOCAB]
    assert not llm.score([(context, other)])[0].is_greedy


def test_empty_contexts_start_a_document_and_empty_continuations_are_certain(llm):
    assert llm.score([("", "ab")])[0].token_logprobs == pytest.approx(llm.score([([0], [98, 99])])[0].token_logprobs)
    empty = llm.score([("ab", "")])[0]
    assert (empty.logprob, empty.is_greedy, empty.num_tokens) == (0.0, True, 0)


def test_scoring_shares_contexts_without_changing_results(path):
    pairs = [("a long shared context " * 3 + str(q), choice) for q in range(4) for choice in ("yes", "no", "may be")]
    shared, single = LLM(path), LLM(path, prefix_sharing=False)
    want = single.score(pairs)
    got = shared.score(pairs)
    assert [score.logprob for score in got] == pytest.approx([score.logprob for score in want], abs=1e-4)
    assert shared.stats().prompt_tokens < 0.3 * single.stats().prompt_tokens


def test_scoring_never_holds_all_logits(llm, monkeypatch):
    rows = []
    head = llm._model._head
    monkeypatch.setattr(llm._model, "_head", lambda x, dtype=None: rows.append(len(x)) or head(x, dtype=dtype))
    llm.score([([1], [2] * 300)])
    assert sum(rows) == 300
    assert max(rows) <= ROWS_AT_ONCE


def test_several_continuations_of_one_context(path, llm, oracle):
    context, choices = list(range(40, 80)), [[5], [6, 7, 8], [], [9], [6, 7], [5], [200] * 50]
    single, several, last = llm.score([(context, [1]), (context, choices), ([3], [4])])
    assert (single.num_tokens, last.num_tokens) == (1, 1)
    for choice, got in zip(choices, several, strict=True):
        assert got.token_ids == choice
        if choice:
            expected = scored_by(oracle("7.0", path), context, choice)
            assert (got.logprob, got.token_logprobs, got.is_greedy) == expected
    assert (several[2].logprob, several[2].is_greedy) == (0.0, True)
    before = llm.stats().prompt_tokens
    llm.score([(context, choices)])
    assert llm.stats().prompt_tokens - before == len(context) + 2 + 1 + 49
    assert [score.logprob for score in llm.score([("ab", ["c", "de"])])[0]] == pytest.approx(
        [score.logprob for score in llm.score([("ab", "c"), ("ab", "de")])], abs=1e-4
    )


def test_one_token_choices_need_one_hidden_state(llm, monkeypatch):
    rows = []
    head = llm._model._head
    monkeypatch.setattr(llm._model, "_head", lambda x, dtype=None: rows.append(len(x)) or head(x, dtype=dtype))
    before = llm.stats().prompt_tokens
    llm.score([(list(range(1, 30)), [[i] for i in range(20)])])
    assert (rows, llm.stats().prompt_tokens - before) == ([1], 29)


def test_top_and_prompt_logprobs_of_scores(path, llm, oracle):
    context, choices = [7, 8, 9, 10], [[5], [6, 7]]
    ((first, second),) = llm.score([(context, choices)], top_logprobs=3, prompt_logprobs=1)
    logits, _ = oracle("7.0", path).forward([*context, 6], full_output=True)
    logprobs = logits.double().log_softmax(-1)
    for entries, token, position in (
        (first.top_logprobs[0], 5, 3),
        *zip(second.top_logprobs, [6, 7], [3, 4], strict=True),
    ):
        best = logprobs[position].topk(3)
        assert next(iter(entries)) == token
        ordered = sorted(entries, key=lambda i: entries[i].rank)[:3]
        assert ordered == best.indices.tolist()
        assert [entries[i].logprob for i in ordered] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert entries[token].logprob == pytest.approx(logprobs[position, token].item(), abs=1e-4)
    assert first.prompt_logprobs[0] is None
    own = [entries[token].logprob for entries, token in zip(first.prompt_logprobs[1:], context[1:], strict=True)]
    assert own == pytest.approx([logprobs[i, token].item() for i, token in enumerate(context[1:])], abs=1e-4)
    assert second.prompt_logprobs == first.prompt_logprobs
    plain = llm.score([(context, choices)])[0]
    assert [score.logprob for score in plain] == pytest.approx([first.logprob, second.logprob], abs=1e-4)
    assert (plain[0].top_logprobs, plain[0].prompt_logprobs) == (None, None)
    assert llm.score([(context, [])], prompt_logprobs=0)[0].prompt_logprobs[1].keys() == {8}
    with pytest.raises(ValueError, match="logprobs"):
        llm.score([], top_logprobs=-2)


def test_token_0_before_contexts_on_request(llm):
    with_it = llm.score([("ab", "c"), ([0, 98], [99])], add_bos_token=True)
    by_hand = llm.score([([0, 98, 99], [100]), ([0, 98], [99])])
    assert [score.logprob for score in with_it] == pytest.approx([score.logprob for score in by_hand], abs=1e-4)


def scored_by(model, context, continuation):
    total, each, is_greedy = model.loglikelihood(context, continuation)
    return pytest.approx(total, abs=1e-3), pytest.approx(each, abs=1e-4), is_greedy


@pytest.mark.parametrize("sharing", [True, False])
def test_equal_contexts_of_several_rows(path, sharing):
    llm = LLM(path, prefix_sharing=sharing, max_batch_size=3)
    rows = [("the same context", ["a", "bc"]), ("the same context", ["a", "bc"]), ("the same context", ["d"])]
    scores = llm.score(rows * 3)
    want = [[s.logprob for s in llm.score([row])[0]] for row in rows]
    assert [[s.logprob for s in outputs] for outputs in scores] == [pytest.approx(w, abs=1e-4) for w in want * 3]
    llm.check_integrity()
