"""Conventions of scoring against the `rwkv` package, which reads the same tokens: a prefix, and documents in chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rwkv_batch import LLM
from rwkv_batch.engine.request import Completion
from rwkv_batch.rows import ErrorRow, ScoreRow
from rwkv_batch.score_requests import score_requests

VOCAB = 257
TEXT = "One text of some length, é, which several chunks hold.\n"


@pytest.fixture(scope="module")
def path(checkpoint_file):
    return checkpoint_file("7.0", vocab=VOCAB)


@pytest.fixture(scope="module")
def llm(path):
    return LLM(path, max_batch_size=4, max_batch_tokens=24)


def encode(text: str) -> list[int]:
    return [byte + 1 for byte in text.encode()]


def score(llm, *rows):
    found = dict(llm.serve_scores(rows))
    llm.check_integrity()
    return [found[row.key] for row in rows]


def cross_entropy_of_chunks(model, tokens: list[int], chunk: int, bos: bool) -> float:
    """As uncheatable-eval computes it: each chunk from a fresh state, each token but the first of the model's input."""
    total = 0.0
    for first in range(0, len(tokens), chunk):
        read = [0] * bos + tokens[first : first + chunk]
        if len(read) > 1:
            logits, _ = model.forward(read, full_output=True)
            losses = torch.nn.functional.cross_entropy(logits[:-1].float(), torch.tensor(read[1:]), reduction="none")
            total += losses.sum().item()
    return total


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("chunk", [2, 7, len(encode(TEXT)) - 1, len(encode(TEXT)), 1000])
def test_documents_in_chunks_equal_those_of_uncheatable_eval(path, llm, oracle, chunk, bos):
    tokens = encode(TEXT)
    model = oracle("7.0", path)
    expected = cross_entropy_of_chunks(model, tokens, chunk, bos)
    row = ScoreRow("a", 0, "", [TEXT], bos, chunk_tokens=chunk)
    as_ids = ScoreRow("b", 1, [], [tokens], bos, chunk_tokens=chunk)
    (text,), (ids,) = score(llm, row, as_ids)
    assert -text.logprob == pytest.approx(expected, abs=1e-3)
    assert ids.token_logprobs == text.token_logprobs
    scored = [i for i in range(len(tokens)) if bos or i % chunk]
    assert text.token_ids == [tokens[i] for i in scored]
    assert text.num_tokens == len(scored) == len(text.token_logprobs)


@pytest.mark.parametrize("bos", [False, True])
def test_a_prefix_is_read_before_the_context_as_in_chatrwkvs_evaluation(path, llm, oracle, bos):
    """There the tokens of "\\n" come before those of the context, and only those of the continuation are scored."""
    model = oracle("7.0", path)
    pairs = [("The sky", " is"), ("", "x"), ("a", "b")]
    found = llm.score(pairs, prefix="\n", add_bos_token=bos)
    by_ids = llm.score([(encode(a), encode(b)) for a, b in pairs], prefix=encode("\n"), add_bos_token=bos)
    for (context, continuation), text, ids in zip(pairs, found, by_ids, strict=True):
        read = [0] * bos + encode("\n") + encode(context)
        logprob, each, is_greedy = model.loglikelihood(read, encode(continuation))
        assert text.logprob == pytest.approx(logprob, abs=1e-3)
        assert text.token_logprobs == pytest.approx(each, abs=1e-4)
        assert text.is_greedy == is_greedy
        assert ids.token_logprobs == text.token_logprobs
    several = llm.score([("The sky", [" is", "s"])], prefix="\n")[0]
    single = llm.score([("\nThe sky", [" is", "s"])])[0]
    assert [one.logprob for one in several] == pytest.approx([one.logprob for one in single], abs=1e-4)


def test_a_prefix_is_encoded_by_itself(llm, monkeypatch):
    encoded = []
    encode_many = llm.tokenizer.encode_many
    monkeypatch.setattr(
        llm.tokenizer, "encode_many", lambda texts: encoded.append(list(texts)) or encode_many(texts), raising=False
    )
    llm.score([("\nb", "c")], prefix="\n")
    assert encoded == [["\nb", "c", "\n"]]


def test_an_empty_prefix_is_none(llm):
    plain = llm.score([("", "x"), ("a", "b")])
    assert [one.logprob for one in llm.score([("", "x"), ("a", "b")], prefix="")] == [one.logprob for one in plain]
    assert [one.logprob for one in llm.score([("", "x"), ("a", "b")], prefix=[])] == [one.logprob for one in plain]


def test_token_0_is_not_added_before_a_prefix_that_starts_with_it(llm):
    with_it = llm.score([([5], [6])], prefix=[0, 7], add_bos_token=True)[0]
    assert with_it.logprob == llm.score([([0, 7, 5], [6])])[0].logprob


def test_a_prefix_before_each_chunk(path, llm, oracle):
    tokens = encode(TEXT)
    model = oracle("7.0", path)
    chunks = [tokens[first : first + 9] for first in range(0, len(tokens), 9)]
    expected = sum(model.loglikelihood([0, *encode("\n")], chunk)[0] for chunk in chunks)
    ((found,),) = score(llm, ScoreRow("a", 0, "", [TEXT], True, prefix="\n", chunk_tokens=9))
    assert found.logprob == pytest.approx(expected, abs=1e-3)
    assert found.token_ids == tokens


@pytest.mark.parametrize(("text", "num_tokens"), [("", 0), ("a", 0), ("ab", 1), ("abc", 1), ("abcd", 2)])
def test_very_short_documents(llm, text, num_tokens):
    """In chunks of two tokens the first token has no score."""
    ((found,),) = score(llm, ScoreRow("a", 0, "", [text], chunk_tokens=2))
    assert (found.num_tokens, len(found.token_logprobs)) == (num_tokens, num_tokens)
    assert found.error is None and (found.logprob == 0.0) == (num_tokens == 0)


def test_top_logprobs_of_chunks(llm):
    ((found,),) = score(llm, ScoreRow("a", 0, [], [[5, 6, 7, 8, 9]], top_logprobs=2, chunk_tokens=3))
    assert found.token_ids == [6, 7, 9] and found.prompt_logprobs is None
    expected = llm.score([([5], [6, 7]), ([8], [9])], top_logprobs=2)
    assert found.top_logprobs == [entries for one in expected for entries in one.top_logprobs]


@pytest.mark.parametrize(
    "row",
    [
        ScoreRow("a", 0, "context", ["text"], chunk_tokens=5),
        ScoreRow("a", 0, "", ["one", "two"], chunk_tokens=5),
        ScoreRow("a", 0, "", ["one"], prompt_logprobs=0, chunk_tokens=5),
        ScoreRow("a", 0, "", [], chunk_tokens=5),
    ],
)
def test_chunks_are_for_one_document(llm, row):
    assert {one.error_code for one in score(llm, row)[0]} == {"bad_type"}


@pytest.mark.parametrize("prefix", [5, b"x", ["x"], [True]])
def test_a_prefix_of_another_type_is_refused(llm, prefix):
    with pytest.raises(ValueError, match=r"^prefix: got .*, expected text, a list of token ids, or None"):
        llm.score([("a", "b")], prefix=prefix)


def test_a_prefix_that_is_text_needs_a_tokenizer(path):
    with pytest.raises(ValueError, match=r"^prefix: got 'x', which is text, but this model was loaded with"):
        LLM(path, tokenizer=None).score([([1], [2])], prefix="x")


def test_a_prefix_out_of_range_costs_its_rows(llm):
    assert llm.score([([1], [2])], prefix=[VOCAB])[0].error_code == "token_out_of_range"


def test_requests_are_numbered_in_the_order_of_the_chunks():
    """The scores of chunks that finish in another order are put in order."""
    ids = np.arange(1, 12, dtype=np.int32)
    row = score_requests(ScoreRow("a", 3, [], [ids], chunk_tokens=4), [np.zeros(0, np.int32), ids], 7)
    assert not isinstance(row, ErrorRow)
    read = [np.asarray(request.prompt_token_ids).tolist() for request in row.requests]
    assert read == [[1, 2, 3], [5, 6, 7], [9, 10]]
    assert [request.next_token_ids for request in row.requests] == [(4,), (8,), (11,)]
    assert row.scoring is not None and row.scoring.continuations[0].tolist() == [2, 3, 4, 6, 7, 8, 10, 11]

    class Part(list):
        pass

    done = [
        Completion(request, np.zeros(0, np.int32), np.zeros(0), "length", next_scores=Part([number]))  # type: ignore[arg-type]
        for number, request in enumerate(row.requests)
    ]
    assert row.scoring.parts_of_continuations(reversed(done)) == [[[0], [1], [2]]]
    assert row.scoring.of_context(done) is None
