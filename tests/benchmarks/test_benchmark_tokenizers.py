"""The benchmark of tokenizers: texts, exponents, its kinds of tokenizers, and a rehearsal."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from benchmarks import tokenizers
from benchmarks.tokenizers import Result, exponent, inputs_of, lengths_up_to, texts
from benchmarks.workloads import Point


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_is_that_of_the_time(power):
    lengths = lengths_up_to(1 << 20)
    assert lengths == [1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20]
    assert exponent(lengths, [3e-9 * length**power for length in lengths]) == pytest.approx(power)


def test_a_result_is_of_the_longest_text():
    result = Result({1000: [1.0, 2.0, 3.0], 2000: [4.0, 5.0, 8.0]}, num_tokens=50)
    assert result.seconds_per_megabyte == [2000.0, 2500.0, 4000.0]
    assert result.tokens_per_second == 10.0
    assert result.exponent == pytest.approx(np.log2(2.5))


def test_texts_have_the_lengths_and_are_beginnings_of_one_another():
    lengths = [250, 500, 1000]
    found = inputs_of(texts("def f(x):\n    return x\n"), lengths)
    assert len(found) == 3 * 8
    for point, text in found.items():
        assert point.batch_size - 40 < len(text) <= point.batch_size, point
        text.decode("utf-8")
        longest = next(other for where, other in found.items() if where == (point.kind, 1000))
        assert longest.startswith(text)
    assert b" " not in found[Point("one word", 500)]


def test_it_rehearses(monkeypatch, capsys, tmp_path):
    out = tmp_path / "out" / "tokenizers.json"
    monkeypatch.setattr(sys, "argv", ["tokenizers", "--quick", "--seconds", "0.0001", "--out", str(out)])
    tokenizers.main()
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    names = list(result["tokenizers"])
    assert names == [
        "world",
        "world, in Python",
        "bytes",
        "vocabulary file",
        "json: WordPiece, World",
        "json: WordPiece, not World",
        "json: RwkvTrie",
        "json: BPE of bytes",
        "json: BPE, SentencePiece",
        "json: WordPiece of words",
    ]
    assert all(printed.count(f"\n{name} ") == 3 for name in names)
    assert result["machine"]["rwkv_batch"] and result["workload"]["lengths"] == [256, 512, 1024, 2048, 4096]
    for name, kinds in result["tokenizers"].items():
        assert len(kinds) == 8
        for kind, one in kinds.items():
            assert one["tokens"] > 0 and np.isfinite(one["exponent"]), (name, kind)
            assert len(one["seconds_by_bytes"]) == 5
    world, python = result["tokenizers"]["world"], result["tokenizers"]["world, in Python"]
    assert {kind: one["tokens"] for kind, one in world.items()} == {kind: one["tokens"] for kind, one in python.items()}
    trie, few = result["tokenizers"]["json: RwkvTrie"], result["tokenizers"]["vocabulary file"]
    assert trie["code"]["tokens"] == few["code"]["tokens"] > world["code"]["tokens"]
