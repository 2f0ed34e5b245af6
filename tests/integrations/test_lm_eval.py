"""The harness's model against the `rwkv` package, request by request."""

from __future__ import annotations

import json
import math
import random
from types import SimpleNamespace

import pytest
import torch
from lm_eval.api.model import CacheHook, TemplateLM
from tolerances import assert_close
from versions import in_package

from integrations.small_model import MERGES, VOCAB, encode, greedy_text, instances


def random_text(draw: random.Random, most: int) -> str:
    pieces = [*MERGES, "a", "b ", "\n", "=", "foo", "bar", "é", "\N{SNOWMAN}", " ", "y", "e"]
    return "".join(draw.choice(pieces) for _ in range(draw.randint(1, most)))


def random_pairs() -> list[tuple[str, str]]:
    draw = random.Random(7)
    pairs = [(random_text(draw, 20), random_text(draw, 6)) for _ in range(10)]
    pairs += [("", random_text(draw, 5)), ("", "a"), ("ab", "c"), (random_text(draw, 150), random_text(draw, 150))]
    pairs += [(context, random_text(draw, 3)) for context, _ in pairs[:4] for _ in range(3)]
    return [*pairs, pairs[0]]


def expected_split(context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The harness's rule, computed independently: trailing spaces move to the continuation, then the text is split at
    the context's number of tokens."""
    if not context:
        return [0], encode(continuation)
    kept = context.rstrip()
    whole, start = encode(context + continuation), len(encode(kept))
    return [0, *encode(kept)], whole[start:] or encode(continuation)


@pytest.mark.parametrize("version", in_package())
def test_log_likelihoods_equal_those_of_the_package(version, model, oracle, checkpoint_file):
    reference = oracle(version, checkpoint_file(version, vocab=VOCAB))
    pairs = random_pairs()
    got = model(version).loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)
    assert len(got) == len(pairs)
    for pair, (logprob, is_greedy) in zip(pairs, got, strict=True):
        total, each, greedy = reference.loglikelihood(*expected_split(*pair))
        assert_close(str(pair), torch.tensor([logprob]), torch.tensor([total]), "float32", factor=10)
        assert len(each) or (logprob, is_greedy) == (0.0, True)
        assert is_greedy == greedy, pair


@pytest.mark.parametrize("version", ["4", "6.0", "7.0"])
def test_continuations_that_the_model_would_choose_are_greedy(version, model, oracle, checkpoint_file):
    reference, lm = oracle(version, checkpoint_file(version, vocab=VOCAB)), model(version)
    for context in ("a", "foobar ==", "\n\n" * 30):
        ids, likeliest = [0, *encode(context)], []
        for _ in range(4):
            likeliest.append(int(reference.forward([*ids, *likeliest], full_output=True)[0][-1].argmax()))
        other = [*likeliest[:-1], 1 + likeliest[-1] % (VOCAB - 1)]
        found = lm._loglikelihood_tokens([(None, ids, likeliest), (None, ids, other)], disable_tqdm=True)
        assert [is_greedy for _, is_greedy in found] == [True, False]


def test_a_continuation_that_merges_into_its_context_is_encoded_by_itself(model, oracle, checkpoint_file):
    lm, reference = model(), oracle("7.0", checkpoint_file("7.0", vocab=VOCAB))
    pairs = [("x =", "= y"), ("http:", "//z"), ("foo", "bar"), ("a\n", "\nb"), ("a \n", "b"), ("foobar", "")]
    splits = [lm._encode_pair(*pair) for pair in pairs]
    assert splits[0] == (encode("x ="), encode(" y"))  # "==" is one token, and counts as the context's last
    assert splits[1] == (encode("http:"), encode("z"))
    assert splits[2] == (encode("foo"), encode("bar"))  # "foobar" is shorter than "foo", and left nothing
    assert splits[3] == (encode("a"), encode("\n\nb"))
    assert splits[4] == (encode("a"), encode(" \nb"))
    assert splits[5] == (encode("foobar"), [])
    assert lm.counts["merged_at_the_border"] == lm.get_model_info()["merged_at_the_border"] == 3
    assert lm.counts["encoded_alone"] == lm.get_model_info()["encoded_alone"] == 1
    ((logprob, _), empty) = lm.loglikelihood(instances("loglikelihood", ("y", "e"), ("foobar", "")), disable_tqdm=True)
    assert logprob == pytest.approx(reference.loglikelihood([0, *encode("y")], encode("e"))[0], abs=1e-4)
    assert empty == (0.0, True)


def test_texts_are_split_as_the_harness_does(model):
    lm, draw = model(), random.Random(3)
    for _ in range(300):
        pair = random_text(draw, 12), random_text(draw, 4)
        context_ids, continuation_ids = TemplateLM._encode_pair(lm, *pair)
        assert lm._encode_pair(*pair) == (context_ids, continuation_ids or encode(pair[1])), pair


def test_nothing_is_inserted_after_a_context_that_no_chat_format_wrote(model, oracle, checkpoint_file):
    """A task may write `Assistant:` itself, and then says itself what stands after it."""
    reference = oracle("7.0", checkpoint_file("7.0", vocab=VOCAB))
    context = "User: q\n\nAssistant:"
    request, spaced = instances("loglikelihood", (context, "yes"), (context, " yes"))
    found = model().loglikelihood([request, spaced], disable_tqdm=True)
    expected = [reference.loglikelihood([0, *encode(context)], encode(text))[0] for text in ("yes", " yes")]
    assert [logprob for logprob, _ in found] == pytest.approx(expected, abs=1e-4)
    assert abs(expected[0] - expected[1]) > 0.1
    assert request.args == (context, "yes")


def test_a_prefix_stands_in_place_of_token_0(model, oracle, checkpoint_file):
    """As ChatRWKV's run_lm_eval.py: its ids before every sequence; what the harness calls an empty context stays 0."""
    reference = oracle("7.0", checkpoint_file("7.0", vocab=VOCAB))
    pairs = [("ab", "c"), ("foobar ==", " yes"), ("", "cd")]
    document, prompt = "x == y\n\n" * 5, "a story"
    for prefix in ("\n", r"\n"):
        lm = model(prefix=prefix, max_length=16)
        assert lm.get_model_info()["prefix"] == "\n"
        assert lm.get_model_info()["add_bos_token"] is False
        found = lm.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)
        expected = [reference.loglikelihood([11, *(encode(a) or [0])], encode(b))[0] for a, b in pairs]
        assert [logprob for logprob, _ in found] == pytest.approx(expected, abs=1e-4)
        (total,) = lm.loglikelihood_rolling(instances("loglikelihood_rolling", (document,)), disable_tqdm=True)
        ids = encode(document)
        windows = [([11, 0], ids[:16]), ([11, *ids[len(ids) - 17 : 16]], ids[16:])]
        assert total == pytest.approx(sum(reference.loglikelihood(*window)[0] for window in windows), abs=1e-3)
        request = instances("generate_until", (prompt, {"until": [], "max_gen_toks": 4}))
        expected_text = greedy_text(reference, [11, *encode(prompt)], 4).decode(errors="replace")
        assert lm.generate_until(request, disable_tqdm=True) == [expected_text]


def test_chunks_start_from_an_empty_state_and_leave_their_first_token_unscored(model, oracle, checkpoint_file):
    """As the evaluator of uncheatable-eval: each chunk is read from an empty state, and predicts all but its first."""
    reference = oracle("7.0", checkpoint_file("7.0", vocab=VOCAB))
    texts = ["x == y\n\n" * 6, "abcdefgh", "abcdefghi", "a", ""]
    lm = model(rolling="chunks", rolling_length=8)
    found = lm.loglikelihood_rolling(
        instances("loglikelihood_rolling", *[(text,) for text in texts]), disable_tqdm=True
    )
    for text, total in zip(texts, found, strict=True):
        ids = encode(text)
        chunks = [ids[start : start + 8] for start in range(0, len(ids), 8)]
        expected = 0.0
        for chunk in chunks:
            logits = torch.log_softmax(reference.forward(chunk, full_output=True)[0].double(), dim=-1)
            expected += sum(float(logits[i, token]) for i, token in enumerate(chunk[1:]))
        assert total == pytest.approx(expected, abs=1e-3)
    assert (found[3], found[4]) == (0.0, 0.0)
    assert lm.get_model_info()["rolling_length"] == 8
    assert model(rolling="chunks").get_model_info()["rolling_length"] == 1024


def test_token_0_comes_first_and_once(model, oracle, checkpoint_file):
    reference = oracle("7.0", checkpoint_file("7.0", vocab=VOCAB))
    requests = [(None, encode("ab"), encode("c")), (None, [0, *encode("ab")], encode("c")), (None, [], encode("c"))]
    for add_bos_token, begins in ((True, [[0], [], [0]]), (False, [[], [], [0]])):
        lm = model(add_bos_token=add_bos_token)
        found = lm._loglikelihood_tokens(requests, disable_tqdm=True)
        for begin, (_, context, continuation), (logprob, _) in zip(begins, requests, found, strict=True):
            assert logprob == pytest.approx(reference.loglikelihood(begin + context, continuation)[0], abs=1e-4)
        assert lm.get_model_info()["add_bos_token"] is add_bos_token


def test_max_length_keeps_the_last_tokens(model, oracle, checkpoint_file):
    reference = oracle("7.0", checkpoint_file("7.0", vocab=VOCAB))
    lm = model(max_length=10)
    context, continuation = [0, *range(10, 40)], [50, 51, 52]
    ((logprob, _),) = lm._loglikelihood_tokens([(None, context, continuation)], disable_tqdm=True)
    assert logprob == pytest.approx(reference.loglikelihood(context[-8:], continuation)[0], abs=1e-4)
    assert lm.get_model_info()["truncated"] == 1
    with pytest.raises(ValueError, match="max_length: got 10, expected at least 11"):
        lm._loglikelihood_tokens([(None, context, list(range(11)))])


def test_documents_are_scored_in_windows_or_as_a_whole(model, oracle, checkpoint_file):
    reference = oracle("7.0", checkpoint_file("7.0", vocab=VOCAB))
    documents = ["foobar " * 9, "a", "", "x == y\n\n" * 20]
    requests = instances("loglikelihood_rolling", *[(text,) for text in documents])
    windowed = model(max_length=16)
    full = model(rolling="full")
    for text, in_windows, whole in zip(
        documents,
        windowed.loglikelihood_rolling(requests, disable_tqdm=True),
        full.loglikelihood_rolling(requests, disable_tqdm=True),
        strict=True,
    ):
        ids = encode(text)
        expected = 0.0
        for start in range(0, len(ids), 16):
            predicted = ids[start : start + 16]
            # A window reads 16 tokens, so one that predicts fewer has begun before its predictions do.
            context = ids[start + len(predicted) - 17 : start] if start else [0]
            expected += reference.loglikelihood(context, predicted)[0]
        assert in_windows == pytest.approx(expected, abs=1e-3)
        assert whole == pytest.approx(reference.loglikelihood([0], ids)[0] if ids else 0.0, abs=1e-3)
    assert windowed.get_model_info()["rolling_length"] == 16
    assert (full.get_model_info()["rolling"], full.get_model_info()["rolling_length"]) == ("full", None)
    assert model().get_model_info()["rolling_length"] == 2048


def test_results_record_the_model_and_the_conventions(model):
    info = model().get_model_info()
    assert json.loads(json.dumps(info)) == info
    assert info["model_sha"] == model().llm.summary.fingerprint
    assert {"add_bos_token": True, "eot_token_id": 0, "max_length": None, "rolling": "window"}.items() <= info.items()


def test_a_cache_hook_without_a_database_is_accepted(model):
    lm = model()
    lm.set_cache_hook(CacheHook(None))
    assert math.isfinite(lm.loglikelihood([SimpleNamespace(args=("a", "b"))], disable_tqdm=True)[0][0])
