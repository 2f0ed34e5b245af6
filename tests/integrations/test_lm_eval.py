"""The harness's model against the `rwkv` package, request by request."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, CachingLM
from tolerances import assert_close
from versions import in_package

from rwkv_batch import LLM
from rwkv_batch.errors import ConfigurationError
from rwkv_batch.integrations.lm_eval import RwkvBatchLM

MERGES = ["\n\n", "==", "foobar", "://", " yes", "ye", "é!"]
VOCAB = 257 + len(MERGES)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary file with every byte, and some tokens that merge over the border of a context."""
    tokens: list[str | bytes] = [bytes([byte]) for byte in range(256)]
    lines = [f"{i} {token!r} {len(token)}" for i, token in enumerate(tokens, 1)]
    lines += [f"{i} {token!r} {len(token.encode())}" for i, token in enumerate(MERGES, 257)]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def model(checkpoint_file, vocabulary):
    """`model(version="7.0", **arguments)`: the harness's model over a random checkpoint, which is loaded once."""
    loaded: dict[str, LLM] = {}

    def get(version: str = "7.0", **arguments: Any) -> RwkvBatchLM:
        if version not in loaded:
            path = checkpoint_file(version, vocab=VOCAB)
            loaded[version] = LLM(path, tokenizer=str(vocabulary), max_batch_size=8, max_batch_tokens=64)
        return RwkvBatchLM(loaded[version], **arguments)

    return get


def encode(text: str) -> list[int]:
    """Encodes by the longest token at each place, found by trying all tokens."""
    data, ids = text.encode(), []
    merges = {token.encode(): i for i, token in enumerate(MERGES, 257)}
    while data:
        found = max((token for token in merges if data.startswith(token)), key=len, default=data[:1])
        ids.append(merges.get(found, data[0] + 1))
        data = data[len(found) :]
    return ids


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, pair, i) for i, pair in enumerate(arguments)]


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
    assert lm.counts["merged_at_the_border"] == lm.get_model_info()["merged_at_the_border"] == 1
    ((logprob, _), empty) = lm.loglikelihood(instances("loglikelihood", ("y", "e"), ("foobar", "")), disable_tqdm=True)
    assert logprob == pytest.approx(reference.loglikelihood([0, *encode("y")], encode("e"))[0], abs=1e-4)
    assert empty == (0.0, True)


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


def greedy_text(reference, context: list[int], count: int) -> bytes:
    ids: list[int] = []
    while len(ids) < count:
        ids.append(int(reference.forward([*context, *ids], full_output=True)[0][-1].argmax()))
        if ids[-1] == 0:
            break
    pieces = [b"", *(bytes([byte]) for byte in range(256)), *(token.encode() for token in MERGES)]
    return b"".join(pieces[i] for i in ids)


def test_completions_end_where_the_task_says(model, oracle, checkpoint_file):
    reference = oracle("7.0", checkpoint_file("7.0", vocab=VOCAB))
    lm, context = model(), "a story\n\n"
    whole = greedy_text(reference, [0, *encode(context)], 24).decode(errors="replace")
    stop = next(character for character in whole[3:] if character.isascii())
    cases = [
        ({"until": [], "max_gen_toks": 24}, whole),
        ({"until": stop, "max_gen_toks": 24}, whole.split(stop)[0]),
        ({"until": ["never", stop, ""], "max_new_tokens": 24, "do_sample": False}, whole.split(stop)[0]),
        (
            {"until": ["never"], "max_tokens": 5},
            greedy_text(reference, [0, *encode(context)], 5).decode(errors="replace"),
        ),
    ]
    arguments = [json.loads(json.dumps(case)) for case, _ in cases]
    got = lm.generate_until(instances("generate_until", *[(context, case) for case in arguments]), disable_tqdm=True)
    assert got == [expected for _, expected in cases]
    assert arguments == [case for case, _ in cases]  # the harness keys its cache by them


def test_a_blank_line_ends_nothing_and_token_0_does(model):
    lm = model()
    params = lm._sampling_params({"until": ["Q:"], "max_gen_toks": 8})
    assert (params.stop_strings, params.stop_token_ids, params.ignore_eos) == (("Q:",), None, False)
    assert lm.eot_token_id == lm.prefix_token_id == 0


def test_samples_differ_between_repeats_and_do_not_depend_on_other_requests(model):
    lm = model()
    arguments = {"until": [], "do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    together = lm.generate_until(
        instances("generate_until", ("b", arguments), *[("a", arguments)] * 3), disable_tqdm=True
    )
    alone = lm.generate_until(instances("generate_until", *[("a", arguments)] * 3), disable_tqdm=True)
    assert together[1:] == alone
    assert len(set(alone)) == 3


def test_generation_arguments_become_sampling_parameters(model, caplog):
    lm = model()
    params = lm._sampling_params({"until": ["\n"], "do_sample": True, "top_p": 0.5, "top_k": 3, "num_beams": 4})
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (1.0, 0.5, 3, 256)
    assert lm._sampling_params({"until": [], "temperature": 0.7}).temperature == 0.7
    assert lm._sampling_params({"until": [], "temperature": 0.7, "do_sample": False}).temperature == 0.0
    assert "num_beams: got 4" in caplog.text


def test_thinking_is_left_out_of_a_completion(model, oracle, checkpoint_file):
    whole = greedy_text(oracle("7.0", checkpoint_file("7.0", vocab=VOCAB)), [0, *encode("a")], 12)
    text = whole.decode(errors="replace")
    request = instances("generate_until", ("a", {"until": [], "max_gen_toks": 12}))
    assert model(think_end_token=text[3]).generate_until(request, disable_tqdm=True) == [
        text.split(text[3])[-1].lstrip()
    ]


def test_prompts_are_rendered_in_the_chat_format(model, oracle, checkpoint_file):
    lm, reference = model(), oracle("7.0", checkpoint_file("7.0", vocab=VOCAB))
    history = [{"role": "system", "content": "s"}, {"role": "user", "content": "q\n\nr"}]
    assert lm.apply_chat_template(history) == "System: s\n\nUser: q\nr\n\nAssistant:"
    assert lm.apply_chat_template(history, add_generation_prompt=False) == "System: s\n\nUser: q\nr"
    answered = [*history, {"role": "assistant", "content": "It is"}]
    assert lm.apply_chat_template(answered, add_generation_prompt=False).endswith("\n\nAssistant: It is")
    assert "Assistant:" in lm.chat_template(True)
    assert lm.chat_template(False) is None
    with pytest.raises(ConfigurationError, match="'chatml'"):
        lm.chat_template("chatml")
    context = lm.apply_chat_template(history)
    ((logprob, _), same) = lm.loglikelihood(
        instances("loglikelihood", (context, "yes"), (context, " yes")), disable_tqdm=True
    )
    assert (
        logprob == same[0] == pytest.approx(reference.loglikelihood([0, *encode(context)], encode(" yes"))[0], abs=1e-4)
    )
    assert lm.tokenizer_name == model().tokenizer_name


class Recorder:
    """A cache that records the answers put into it, in order."""

    dbdict = None

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any, Any]] = []

    def add_partial(self, attribute: str, arguments: Any, answer: Any) -> None:
        self.seen.append((attribute, arguments, answer))


def test_answers_reach_the_cache_as_they_finish(model):
    lm, hook = model(), Recorder()
    lm.set_cache_hook(hook)
    pairs = random_pairs()[:12]
    answers = lm.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)
    assert sorted(hook.seen) == sorted(
        ("loglikelihood", pair, answer) for pair, answer in zip(pairs, answers, strict=True)
    )
    hook.seen.clear()
    total = lm.loglikelihood_rolling(instances("loglikelihood_rolling", ("abc",)), disable_tqdm=True)
    text = lm.generate_until(
        instances("generate_until", ("a", {"until": ["\n"], "max_gen_toks": 4})), disable_tqdm=True
    )
    assert hook.seen == [
        ("loglikelihood_rolling", ("abc",), total[0]),
        ("generate_until", ("a", {"until": ["\n"], "max_gen_toks": 4}), text[0]),
    ]


def test_another_model_never_gets_a_cached_answer(model, checkpoint_file, vocabulary, tmp_path, monkeypatch):
    path = str(tmp_path / "cache.db")
    requests = instances("loglikelihood", ("ab", "c"), ("ab", "d"))
    first = CachingLM(model(), path).loglikelihood(requests)
    other = RwkvBatchLM(checkpoint_file("7.0", vocab=VOCAB, seed=1), tokenizer=str(vocabulary), batch_size=4)
    assert other.llm.summary.memory.max_batch_size == 4
    expected = other.loglikelihood(requests, disable_tqdm=True)
    assert CachingLM(other, path).loglikelihood(requests) == expected != first
    assert CachingLM(model(add_bos_token=False), path).loglikelihood(requests) != first
    again = model()
    monkeypatch.setattr(again, "loglikelihood", lambda _: pytest.fail("the answers are in the cache"))
    assert CachingLM(again, path).loglikelihood(requests) == first


def test_wrong_arguments_are_refused_by_name(checkpoint_file):
    path = str(checkpoint_file("7.0", vocab=VOCAB))
    for arguments, message in (
        ({"pretrained": path, "add_boss_token": True}, "unknown argument 'add_boss_token'"),
        ({"pretrained": path, "model": path}, "expected one of them"),
        ({}, r"expected one of them, as in pretrained=model\.pth$"),
        ({"pretraind": path}, "expected one of them, as in .*; other arguments: pretraind$"),
        ({"pretrained": path, "rolling": "half"}, "'window' or 'full'"),
        ({"pretrained": path, "max_length": 1}, "expected an integer from 2"),
        ({"pretrained": path, "add_bos_token": 1}, "expected True or False"),
        ({"pretrained": path, "tokenizer": None}, "expected a tokenizer"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            RwkvBatchLM(**arguments)


def test_results_record_the_model_and_the_conventions(model):
    info = model().get_model_info()
    assert json.loads(json.dumps(info)) == info
    assert info["model_sha"] == model().llm.summary.fingerprint
    assert {"add_bos_token": True, "eot_token_id": 0, "max_length": None, "rolling": "window"}.items() <= info.items()


def test_a_cache_hook_without_a_database_is_accepted(model):
    lm = model()
    lm.set_cache_hook(CacheHook(None))
    assert math.isfinite(lm.loglikelihood([SimpleNamespace(args=("a", "b"))], disable_tqdm=True)[0][0])
