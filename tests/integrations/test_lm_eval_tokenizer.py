"""The tokenizer that tasks of the harness load by the model's name."""

from __future__ import annotations

import pytest
from small_model import VOCAB, encode
from transformers import AutoTokenizer

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
    with pytest.raises(OSError, match="huggingface.co"):
        AutoTokenizer.from_pretrained("nobody/nothing")


def test_ruler_measures_its_texts_with_it(checkpoint_file, vocabulary):
    """The functions by which RULER's tasks load their tokenizer, with the model arguments as the harness gives them."""
    from lm_eval.tasks.babilong import common_utils as babilong
    from lm_eval.tasks.ruler import common_utils as ruler

    path = str(checkpoint_file("7.0", vocab=VOCAB))
    for arguments in ({"pretrained": path}, {"model": path}, {"pretrained": path, "tokenizer": str(vocabulary)}):
        RwkvBatchLM(**{"tokenizer": str(vocabulary), **arguments})
        ruler.get_tokenizer.cache_clear()
        found = ruler.get_tokenizer(ruler.resolve_tokenizer_name(arguments))
        assert found("foobar ==").input_ids == encode("foobar ==")
    babilong.get_tokenizer.cache_clear()
    assert babilong.get_tokenizer(pretrained=path).encode("://") == encode("://")
