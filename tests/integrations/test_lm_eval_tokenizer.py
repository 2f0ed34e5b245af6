"""The tokenizer that tasks of the harness load by the model's name."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from integrations.small_model import VOCAB, encode
from rwkv_batch.integrations.lm_eval import RwkvBatchLM


@pytest.fixture(autouse=True)
def own_offers(monkeypatch):
    """Takes back afterwards what a test offers."""
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", AutoTokenizer.from_pretrained)
    monkeypatch.setattr("rwkv_batch.integrations.lm_eval_tokenizer._offered", {})


def test_tasks_find_the_tokenizer_of_the_model(checkpoint_file, vocabulary):
    path = str(checkpoint_file("7.0", vocab=VOCAB))
    RwkvBatchLM(path, tokenizer=str(vocabulary))
    for name in (path, str(vocabulary), "rwkv_batch"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
        assert tokenizer("foobar ==").input_ids == encode("foobar ==")
        assert tokenizer.decode(encode("foobar ==")) == "foobar =="
    RwkvBatchLM(path, tokenizer="bytes")
    assert AutoTokenizer.from_pretrained(path)("foobar").input_ids == [byte + 1 for byte in b"foobar"]


def test_other_names_are_the_harness_s(checkpoint_file, vocabulary):
    RwkvBatchLM(str(checkpoint_file("7.0", vocab=VOCAB)), tokenizer=str(vocabulary))
    with pytest.raises(OSError, match="huggingface"):
        AutoTokenizer.from_pretrained("nobody/nothing")


def test_ruler_measures_its_texts_with_it(checkpoint_file, vocabulary):
    """The functions by which RULER's tasks load their tokenizer, with the model arguments as the harness gives them."""
    from lm_eval.tasks.babilong import common_utils as babilong
    from lm_eval.tasks.ruler import common_utils as ruler

    path = str(checkpoint_file("7.0", vocab=VOCAB))
    given: list[dict[str, Any]] = [{"pretrained": path}, {"model": path}]
    for arguments in (*given, {"pretrained": path, "tokenizer": str(vocabulary)}):
        RwkvBatchLM(**{"tokenizer": str(vocabulary), **arguments})
        ruler.get_tokenizer.cache_clear()
        found = ruler.get_tokenizer(ruler.resolve_tokenizer_name(arguments))
        assert found("foobar ==").input_ids == encode("foobar ==")
    babilong.get_tokenizer.cache_clear()
    assert babilong.get_tokenizer(pretrained=path).encode("://") == encode("://")


def test_a_task_of_ruler_makes_its_texts(checkpoint_file, vocabulary, monkeypatch):
    """A needle in a haystack, by the real task; the package that supplies its words is a stub."""
    words = SimpleNamespace(_categories={"nouns": ["stone"], "adjectives": ["small", "old"], "verbs": ["go"]})
    monkeypatch.setitem(sys.modules, "wonderwords", SimpleNamespace(RandomWord=lambda: words))
    monkeypatch.setattr("nltk.data.find", lambda name: name)
    for name in ("prepare_niah", "niah_utils"):
        monkeypatch.delitem(sys.modules, f"lm_eval.tasks.ruler.{name}", raising=False)
    from lm_eval.tasks.ruler.common_utils import get_tokenizer
    from lm_eval.tasks.ruler.niah_utils import niah_single_1

    get_tokenizer.cache_clear()
    path = str(checkpoint_file("7.0", vocab=VOCAB))
    RwkvBatchLM(path, tokenizer=str(vocabulary))
    rows = niah_single_1(pretrained=path, max_seq_lengths=[1200])["test"]
    assert len(rows) == 500
    for row in rows.select(range(0, 500, 100)):
        assert row["outputs"][0] in row["input"]
        assert 600 < row["length"] <= 1200
        assert row["length"] == len(encode(row["input"])) + 128  # the task leaves room for an answer of 128 tokens
