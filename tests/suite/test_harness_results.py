"""Results of the harness as metrics and samples. The expected numbers are computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rwkv_batch.suite.harness_results import metrics_of, samples_of


def sample(number: int, filtered: str = "none", **values: Any) -> dict[str, Any]:
    return {"doc_id": number, "doc_hash": f"{number}23456789abc", "metrics": [*values], "filter": filtered, **values}


def results(samples: dict[str, list[dict[str, Any]]], **scores: dict[str, Any]) -> dict[str, Any]:
    return {
        "results": scores,
        "samples": samples,
        "n-samples": {name: {"original": 99, "effective": len(lines)} for name, lines in samples.items()},
        "higher_is_better": {name: {"acc": True, "perplexity": False, "f1": None} for name in scores},
    }


def test_shares_and_perplexities() -> None:
    lines = [sample(i, acc=float(i < 2), perplexity=-float(i)) for i in range(4)]
    words = {"alias": "words", "acc,none": 0.5, "acc_stderr,none": 0.29, "perplexity,none": math.exp(1.5)}
    found = results({"words": lines}, words={**words, "perplexity_stderr,none": 3.0})
    acc, perplexity = metrics_of(found, "words")
    # Wilson's interval of 2 of 4
    assert (acc.name, acc.value, acc.samples, acc.higher_is_better) == ("acc", 0.5, 4, True)
    assert (acc.low, acc.high) == pytest.approx((0.1500, 0.8500), abs=1e-4)
    # the mean of 0, 1, 2, 3 is 1.5, and its standard error 1.2910 / 2
    assert (perplexity.value, perplexity.higher_is_better) == (math.exp(1.5), False)
    assert (perplexity.low, perplexity.high) == pytest.approx((math.exp(0.2349), math.exp(2.7651)), rel=1e-3)
    samples = samples_of(found)
    assert samples.ids == ["0 02345678", "1 12345678", "2 22345678", "3 32345678"]
    assert samples.values["acc"].tolist() == [1, 1, 0, 0]
    assert samples.values["perplexity"].tolist() == [0, 1, 2, 3]


def test_documents_of_many_words() -> None:
    lines = [sample(i, word_perplexity=(-10.0 * i, 5), bits_per_byte=(-10.0 * i, 20)) for i in (1, 2)]
    pages = {"word_perplexity,none": 20.1, "word_perplexity_stderr,none": "N/A", "bits_per_byte,none": 1.08}
    found = results({"pages": lines}, pages=pages)
    assert [(one.name, one.low, one.high) for one in metrics_of(found, "pages")] == [
        ("word_perplexity", None, None),
        ("bits_per_byte", None, None),
    ]
    values = samples_of(found).values
    assert values["word_perplexity"].tolist() == [2, 4]
    assert values["bits_per_byte"].tolist() == pytest.approx([0.5 / math.log(2), 1 / math.log(2)])


def test_filters_and_values_that_are_no_numbers() -> None:
    lines = [
        sample(i, name, em=int(name == "flexible"), f1=("a", "b")) for name in ("strict", "flexible") for i in (0, 1)
    ]
    scores = {
        "em,strict": 0.0,
        "em_stderr,strict": 0.0,
        "em,flexible": 1.0,
        "em_stderr,flexible": 0.0,
        "f1,strict": 0.3,
    }
    found = results({"sums": lines}, sums={**scores, "f1_stderr,strict": 0.2})
    metrics = {one.name: one for one in metrics_of(found, "sums")}
    assert [*metrics] == ["em strict", "em flexible", "f1 strict"]
    assert (metrics["em strict"].low, metrics["em strict"].high) == pytest.approx((0.0, 0.6576), abs=1e-4)
    assert (metrics["f1 strict"].low, metrics["f1 strict"].high) == pytest.approx((0.0, 0.6920), abs=1e-4)
    assert metrics["f1 strict"].higher_is_better
    samples = samples_of(found)
    assert samples.ids == ["0 02345678", "1 12345678"]
    assert {name: values.tolist() for name, values in samples.values.items()} == {
        "em strict": [0, 0],
        "em flexible": [1, 1],
    }


def test_groups_and_tags() -> None:
    leaves = {"a": [sample(0, acc=1.0), sample(1, acc=0.0)], "b": [sample(0, acc=0.0, f1=0.5)]}
    scores = {"a": {"acc,none": 0.5}, "b": {"acc,none": 0.0, "f1,none": 0.5}}
    group = results(leaves, **scores, both={"acc,none": 0.33, "acc_stderr,none": 0.1})
    (acc,) = metrics_of(group, "both")
    assert (acc.name, acc.value, acc.samples) == ("acc", 0.33, 3)
    assert (acc.low, acc.high) == pytest.approx((0.134, 0.526), abs=1e-3)
    tag = results(leaves, **scores)
    assert [(one.name, one.samples) for one in metrics_of(tag, "both")] == [("a acc", 2), ("b acc", 1), ("b f1", 1)]
    samples = samples_of(tag)
    assert samples.ids == ["a 0 02345678", "a 1 12345678", "b 0 02345678"]
    assert samples.values["acc"].tolist() == [1, 0, 0]
    assert np.isnan(samples.values["f1"]).tolist() == [True, True, False]
