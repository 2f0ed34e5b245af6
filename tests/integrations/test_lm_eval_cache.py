"""Answers that the harness keeps between runs: for whom they count, and that samples are kept too."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.model import CachingLM

from integrations.small_model import VOCAB, instances
from rwkv_batch.integrations.lm_eval import RwkvBatchLM
from rwkv_batch.integrations.lm_eval_cache import HARMLESS, RESOLVED, digest, model_identity
from rwkv_batch.llm import inspect_model
from rwkv_batch.settings import EngineSettings, ModelSettings

SAMPLED = {"until": [], "do_sample": True, "temperature": 1.0, "max_gen_toks": 6}


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
    pairs = [("ab", "c"), ("foobar ==", " yes"), ("", "d"), ("ab", "d")]
    answers = lm.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)
    assert sorted(hook.seen) == sorted(
        ("loglikelihood", pair, answer) for pair, answer in zip(pairs, answers, strict=True)
    )
    hook.seen.clear()
    total = lm.loglikelihood_rolling(instances("loglikelihood_rolling", ("abc",)), disable_tqdm=True)
    settings = {"until": ["\n"], "max_gen_toks": 4}
    text = lm.generate_until(instances("generate_until", ("a", settings)), disable_tqdm=True)
    assert hook.seen == [
        ("loglikelihood_rolling", ("abc",), total[0]),
        ("generate_until", ("a", settings), text[0]),
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


SETTINGS: list[dict[str, Any]] = [
    {},
    {"dtype": "bfloat16"},
    {"strategy": "cpu fp32 *1 -> cpu bf16"},
    {"strategy": "cpu fp32 *2 -> cpu bf16"},
    {"strategy": "cpu bf16 *1 -> cpu fp32"},
    {"strategy": "cpu fp32i8 *1 -> cpu fp32"},
    {"strategy": "cpu fp32 *1 -> cpu fp32i8"},
    {"quantization": "int8"},
    {"quantization": "w8a8"},
    {"state_dtype": "float16"},
    {"ln_x_eps": 1e-4},
    {"batch_invariant": True},
    {"tokenizer": "bytes"},
    {"seed": 1},
    {"logprobs_mode": "processed_logprobs"},
]
"""Settings of `LLM` that change answers, each in another way."""


GROUPS = (ModelSettings, EngineSettings)


def names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def identity(checkpoint: Path, vocabulary: Path, **settings: Any) -> str:
    given = {"tokenizer": str(vocabulary), "device": "cpu", "dtype": "float32", **settings}
    if "strategy" in settings:
        given |= {"device": "auto", "dtype": "auto"}
    model, engine = ({name: given[name] for name in names(kind) if name in given} for kind in GROUPS)
    return digest(model_identity(inspect_model(ModelSettings(checkpoint, **model), EngineSettings(**engine))))


def test_settings_that_change_answers_never_share_them(checkpoint_file, vocabulary, tmp_path):
    checkpoint = checkpoint_file("7.0", vocab=VOCAB)
    found = [identity(checkpoint, vocabulary, **settings) for settings in SETTINGS]
    assert len(set(found)) == len(SETTINGS)
    same: list[dict[str, Any]] = [
        {"strategy": "cpu fp32"},
        {"strategy": "cpu fp32 *1 -> cpu fp32"},
        {"max_batch_size": 3, "max_batch_tokens": 16, "prefix_sharing": False, "backend": "reference"},
    ]
    assert {identity(checkpoint, vocabulary, **settings) for settings in same} == {found[0]}
    assert identity(checkpoint, vocabulary, strategy="cpu bf16") == found[1]
    assert {name for kind in GROUPS for name in names(kind)} >= HARMLESS | RESOLVED


def test_a_strategy_of_the_layers_is_part_of_the_identity(checkpoint_file, vocabulary, tmp_path):
    """The harness itself never hands out an answer of another strategy."""
    path, checkpoint = str(tmp_path / "cache.db"), str(checkpoint_file("7.0", vocab=VOCAB))
    requests = instances("loglikelihood", ("foobar ==", " yes"), ("ab", "d"))
    answers = []
    for strategy in ("cpu fp32", "cpu fp32i8 *1 -> cpu fp32", "cpu fp32 *1 -> cpu bf16", "cpu bf16"):
        lm = RwkvBatchLM(checkpoint, tokenizer=str(vocabulary), strategy=strategy, max_batch_size=4)
        expected = lm.loglikelihood(requests, disable_tqdm=True)
        answers.append(CachingLM(lm, path).loglikelihood(requests))
        assert answers[-1] == expected
    assert len(set(map(str, answers))) == 4


def test_a_chat_format_has_answers_of_its_own(model, tmp_path):
    """The same text with and without a chat format ends at other strings."""
    path, settings = str(tmp_path / "cache.db"), {"until": [], "max_gen_toks": 40, "regex": "4\n\nUser: 5"}
    text = "User: 2\\+2\\?\n\nAssistant:".replace("\\", "")
    plain = CachingLM(model(), path).generate_until(instances("generate_until", (text, settings)))
    assert plain == ["4\n\nUser: 5"]
    chats: list[dict[str, str]] = [{}, {"think": "fake"}, {"chat_format": "bot"}]
    for arguments in chats:
        lm = CachingLM(model(**arguments), path)
        prompt = lm.apply_chat_template([{"role": "user", "content": "2+2?"}])
        assert (prompt == text) is (arguments == {})
        (answer,) = lm.generate_until(instances("generate_until", (prompt, settings)))
        assert answer == ("4\n\nUser: 5" if "chat_format" in arguments else "4")
    assert CachingLM(model(), path).generate_until(instances("generate_until", (text, settings))) == plain


def count_served(monkeypatch: pytest.MonkeyPatch, lm: RwkvBatchLM) -> list[int]:
    served: list[int] = []
    serve = lm.llm.serve

    def counted(rows: Any) -> Any:
        rows = list(rows)
        served.append(len(rows))
        return serve(rows)

    monkeypatch.setattr(lm.llm, "serve", counted)
    return served


@pytest.mark.parametrize(
    "arguments", [SAMPLED, {key: SAMPLED[key] for key in ("until", "temperature", "max_gen_toks")}]
)
def test_samples_are_kept_one_by_one(model, tmp_path, monkeypatch, arguments):
    """Also where only a temperature says that a request samples: the harness then keeps one answer for all repeats."""
    path = str(tmp_path / "cache.db")
    lm = model()
    served = count_served(monkeypatch, lm)

    def run(*contexts: str) -> list[str]:
        return CachingLM(model(), path).generate_until(
            instances("generate_until", *[(context, dict(arguments)) for context in contexts])
        )

    alone = lm.generate_until(
        instances("generate_until", *[(context, dict(arguments)) for context in "aabba"]), disable_tqdm=True
    )
    assert len(set(alone)) == 5
    served.clear()
    first = run("a", "a", "b")
    assert first == alone[:3]
    assert run("a", "a", "b", "b", "a") == alone  # two more, three from the table
    assert run("a", "a", "b", "b", "a") == alone
    assert served == [3, 2, 0]


def test_samples_of_another_seed_are_others(model, tmp_path, monkeypatch):
    path = str(tmp_path / "cache.db")

    def run(lm: RwkvBatchLM, seed: int) -> list[str]:
        torch.manual_seed(seed)  # as the harness does for its option --seed
        return CachingLM(lm, path).generate_until(instances("generate_until", ("a", dict(SAMPLED)), ("b", SAMPLED)))

    one, two = run(model(), 1), run(model(), 2)
    assert one != two
    assert run(model(), 1) == one
    assert run(model(seed=2), 1) == two  # the model's argument wins
    served = count_served(monkeypatch, model())
    assert run(model(), 2) == two
    assert served == [0]


def test_greedy_answers_do_not_depend_on_the_seed_of_samples(model, tmp_path, monkeypatch):
    path, settings = str(tmp_path / "cache.db"), {"until": [], "max_gen_toks": 4}
    torch.manual_seed(1)
    first = CachingLM(model(), path).generate_until(instances("generate_until", ("a", settings)))
    torch.manual_seed(2)
    served = count_served(monkeypatch, model())
    assert CachingLM(model(), path).generate_until(instances("generate_until", ("a", settings))) == first
    assert served == []
