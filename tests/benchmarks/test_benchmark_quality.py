"""The table of formats: its measures, its pieces of text, and a rehearsal."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import quality
from benchmarks.quality import agreement, held_out_pieces, markdown, shared_length


def test_agreement_is_over_all_positions():
    assert agreement([[1, 2], [3, 4, 5, 6]], [[1, 0], [3, 4, 5, 0]]) == pytest.approx(4 / 6)


@pytest.mark.parametrize(("other", "length"), [([1, 2, 3], 3), ([1, 0, 3], 1), ([0, 2, 3], 0)])
def test_completions_are_shared_up_to_the_first_difference(other, length):
    assert shared_length([1, 2, 3], other) == length


def test_pieces_are_of_one_length_and_differ():
    pieces = held_out_pieces(4, 100)
    assert [len(piece) for piece in pieces] == [100] * 4
    assert len({tuple(piece) for piece in pieces}) == 4
    with pytest.raises(ValueError, match="expected no more than"):
        held_out_pieces(10**6, 100)


def test_markdown():
    assert markdown(("", "speed"), [("a", "1")]) == "|  | speed |\n| --- | ---: |\n| a | 1 |"


def test_it_rehearses(monkeypatch, capsys):
    arguments = ["--variants", "float32,float32+int8,float32+nonsense", "--pieces", "2", "--piece-len", "256"]
    arguments += ["--completion-len", "8", "--batch-size", "2", "--steps", "2", "--rounds", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["quality", *arguments])
    quality.main()
    captured = capsys.readouterr()
    base, int8 = [line.strip("| ").split(" | ") for line in captured.out.splitlines()[2:4]]
    assert "float32+nonsense: " in captured.err
    assert (base[0], base[4], base[5]) == ("float32", "100.00%", "8 of 8")
    assert float(int8[2]) < float(base[2]) / 2
    assert 0.5 < float(base[3]) < 4
    assert float(int8[3]) == pytest.approx(float(base[3]), rel=0.02)
    assert torch.get_num_threads() == 1
