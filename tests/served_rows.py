"""Rows for tests of `Serving`, and an engine over the fake model that serves them."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

from fakes.model import VOCAB, make_engine

from rwkv_batch.errors import RowError
from rwkv_batch.requests import RequestBuilder
from rwkv_batch.rows import GenerateRow
from rwkv_batch.sampling_params import SamplingParams
from rwkv_batch.serving import Serving
from rwkv_batch.text.constraint_compiler import RowConstraint

LONG = SamplingParams(max_tokens=1500, ignore_eos=True)
SHORT = SamplingParams(max_tokens=3, ignore_eos=True)


def make_serving(model=None, **settings):
    """A `Serving`, and its engine."""
    engine = make_engine(model, **settings)
    return Serving(engine, RequestBuilder(None, VOCAB, 0, None)), engine


def row(key, params=SHORT, prompt=(1, 2, 3)):
    """A row with a prompt of token ids."""
    return GenerateRow(key, 7, list(prompt), params)


def serve(serving, *batches, **settings):
    """Serves batches of rows, and returns the finished rows by key. Asserts that each comes once."""
    found = {}
    for finished in serving.run(batches, **settings):
        for one in finished:
            assert one.key not in found
            found[one.key] = one
    return found


def tokens(found):
    """Key → token ids, of rows with one sample."""
    return {key: one.completions[0].token_ids.tolist() for key, one in found.items()}


class SlowConstraints:
    """Stands in for a `ConstraintCompiler`: the test completes the futures. What is compiled allows every token."""

    def __init__(self):
        self.compiled = {}

    def start(self, json_schema, regex, grammar, permitted):
        future = self.compiled.setdefault(regex, Future())
        if regex == "known":
            future = Future()
            future.set_exception(RowError("bad_sampling", "regex: known to be bad"))
        return RowConstraint("regex", future)


class Free:
    """Stands in for a `CompiledConstraint`."""

    def begin(self, work, permitted):
        batch = SimpleNamespace(accept=lambda constraints, ids: None, fill=lambda constraints, masks: masks.fill(-1))
        return SimpleNamespace(batch=batch)


def make_slow():
    """A `Serving` whose constraints are compiled when the test says so, its engine, and the futures by regex."""
    serving, engine = make_serving()
    constraints = SlowConstraints()
    serving._builder._constraints = constraints
    return serving, engine, constraints.compiled


def constrained(key, regex):
    """A row with a constraint."""
    return row(key, SamplingParams(max_tokens=3, regex=regex))
