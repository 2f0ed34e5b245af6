"""Interrupts: after an exception at any line of the engine, the next call gives the usual results."""

import random
import sys
from pathlib import Path

import pytest
from fakes.model import PARAMS, check_bookkeeping, make_engine, outcome

import rwkv_batch.engine.engine
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.source import Pulled

FOLDER = str(Path(rwkv_batch.engine.engine.__file__).parent)
NOT_OURS = ("selection.py", "sample.py", "philox.py", "penalties.py", "thread_switching.py")
"""Modules in which no exception is raised. Those of the reference sampler have no state. `thread_switching` holds a
lock: a trace can raise between the end of a `with` block and the release of its lock, which a signal cannot."""


class Interrupt(BaseException):
    """Stands for KeyboardInterrupt, in a class that nothing else raises."""


class RaiseAt:
    """A trace function that raises at the n-th line that the engine runs. It counts lines, and notes the function."""

    def __init__(self, line: int) -> None:
        self.left = line
        self.num_lines = 0
        self.function = ""

    def __call__(self, frame, event, argument):
        name = frame.f_code.co_filename
        return self._line if name.startswith(FOLDER) and not name.endswith(NOT_OURS) else None

    def _line(self, frame, event, argument):
        if event == "line":
            self.num_lines += 1
            self.left -= 1
            if self.left == 0:
                self.function = frame.f_code.co_name
                raise Interrupt
        return self._line


def requests():
    """Requests with shared prefixes, samples, scores and every sampling setting; more rows than slots."""
    made = [Request(row, [row % 3] * 12 + [row], PARAMS[row % len(PARAMS)], row=row) for row in range(9)]
    made.append(Request("scored", [1] * 12 + [5, 6], PARAMS[1], row=20, score_start=3, next_token_ids=(4, 5)))
    return made


def traced(engine, trace):
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return {completion.key: outcome(completion) for completion in engine.generate(Pulled(requests()))}
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("settings", [{}, {"run_ahead": True}, {"run_ahead": True, "record_steps": True}], ids=str)
@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.soak), 61])
def test_an_exception_at_any_line_leaves_the_engine_usable(stride, settings):
    counter = RaiseAt(0)
    expected = traced(make_engine(**settings), counter)
    assert counter.num_lines > 1000
    engine = make_engine(**settings)
    num_raised = 0
    lines = range(1 + random.Random(7).randrange(stride), counter.num_lines, stride)
    for line in lines:
        trace = RaiseAt(line)
        try:
            traced(engine, trace)
        except Interrupt:
            num_raised += 1
        if trace.function not in ("_abandon", "_run", "clear", "close_all", "close", "release", "free_all", "__init__"):
            check_bookkeeping(engine)
            assert engine.pool.num_free == engine.pool.num_slots
            assert engine.stats.running == 0
        if line % 5 == 0:  # not each time, so that an interrupt also comes after an interrupt
            again = {completion.key: outcome(completion) for completion in engine.generate(Pulled(requests()))}
            assert again == expected, (line, trace.function)
            check_bookkeeping(engine)
    assert num_raised > 0.9 * len(lines)  # later runs take fewer lines: table entries of settings are cached


def test_an_exception_of_the_caller_between_two_results_leaves_the_engine_usable(make_engine=make_engine):
    engine = make_engine()
    expected = {completion.key: outcome(completion) for completion in engine.generate(Pulled(requests()))}
    for _ in range(3):
        with pytest.raises(Interrupt):
            for _ in engine.generate(Pulled(requests())):
                raise Interrupt
        engine.check_integrity()
    assert {c.key: outcome(c) for c in engine.generate(Pulled(requests()))} == expected


def test_slots_are_allocated_again_after_an_exception_only():
    engine = make_engine()
    pool = engine.pool
    list(engine.generate(Pulled(requests())))
    completions = engine.generate(Pulled(requests()))
    next(completions)
    completions.close()
    list(engine.generate(Pulled(requests())))
    assert engine.pool is pool
    steps = engine.run(Pulled(requests()))
    next(steps)
    with pytest.raises(Interrupt):
        steps.throw(Interrupt)
    list(engine.generate(Pulled(requests())))
    assert engine.pool is not pool


def test_an_exception_of_the_source_leaves_the_engine_usable():
    engine = make_engine()
    expected = {completion.key: outcome(completion) for completion in engine.generate(Pulled(requests()))}

    def broken():
        yield from requests()[:5]
        raise Interrupt

    with pytest.raises(Interrupt):
        list(engine.generate(Pulled(broken())))
    engine.check_integrity()
    assert {c.key: outcome(c) for c in engine.generate(Pulled(requests()))} == expected
