"""The progress bar of `generate`: when it is there, and what it shows."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from rwkv_batch.outputs import CompletionOutput, RequestOutput
from rwkv_batch.progress_bar import shown


def results(count: int) -> Iterator[tuple[int, RequestOutput]]:
    for i in range(count):
        sample = CompletionOutput(0, "", [1, 2, 3], 0.0, None, "length", None)
        yield i, RequestOutput("", [1, 2], None, [sample, sample])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("use_tqdm", "stream", "is_there"),
    [
        (None, io.StringIO, False),
        (None, Terminal, True),
        (True, io.StringIO, True),
        (False, Terminal, False),
        (0, Terminal, False),
    ],
)
def test_a_bar_is_where_somebody_sees_it(
    monkeypatch: pytest.MonkeyPatch, use_tqdm: bool | None, stream: type[io.StringIO], is_there: bool
) -> None:
    stderr = stream()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert [i for i, _ in shown(results(3), 3, use_tqdm)] == [0, 1, 2]
    written = stderr.getvalue()
    assert ("3/3" in written and "tokens/s" in written) == is_there
    assert is_there or not written


def test_a_bar_is_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    shell = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", shell)
    list(shown(results(2), 2, None))
    assert "2/2" in stderr.getvalue()


def test_no_stream_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert len(list(shown(results(2), 2, None))) == 2


class Bar:
    """Notes what happens to it."""

    made: ClassVar[list[Bar]] = []

    def __init__(self, **options: Any) -> None:
        self.options, self.updates, self.postfix, self.is_closed = options, 0, "", False
        Bar.made.append(self)

    def update(self, count: int) -> None:
        self.updates += count

    def close(self) -> None:
        self.is_closed = True


def test_a_function_makes_the_bar() -> None:
    Bar.made.clear()
    iterator = shown(results(3), 3, Bar)
    assert [next(iterator)[0], next(iterator)[0]] == [0, 1]
    (bar,) = Bar.made
    assert (bar.options["total"], bar.updates, bar.is_closed) == (3, 1, False)
    assert [i for i, _ in iterator] == [2]
    assert (bar.updates, bar.is_closed) == (3, True)
    speeds = [float(part.split()[1]) for part in bar.postfix.split(", ")]
    assert speeds[1] == pytest.approx(3 * speeds[0], rel=0.1), "6 tokens of completions for 2 of each prompt"


def test_a_bar_is_closed_where_the_results_end_early() -> None:
    Bar.made.clear()

    def failing() -> Iterator[tuple[int, RequestOutput]]:
        yield from results(1)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        list(shown(failing(), 3, Bar))
    assert Bar.made[0].is_closed
