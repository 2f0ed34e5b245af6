"""Result columns against their definition: one dictionary per record, and Arrow's own conversion of it."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from job import fake_llm
from rwkv_batch.engine.request import Completion, Request
from rwkv_batch.engine.token_scores import TokenScores
from rwkv_batch.errors import RowError
from rwkv_batch.job.output.results import Results, best_choice, held_bytes
from rwkv_batch.rows import ErrorRow, GenerateRow, RowInFlight, ScoreRow
from rwkv_batch.sampling_params import SamplingParams

from ..conftest import Job
from ..prepared import prepared

TOKEN_BYTES = (None, *(bytes([byte]) for byte in range(256)), "é€😀".encode(), b"", None)
STATUS = [("status", pa.string()), ("error_code", pa.string()), ("error", pa.string())]
GENERATE = pa.schema(
    [
        ("sample_index", pa.int32()),
        ("completion", pa.string()),
        ("finish_reason", pa.string()),
        ("stop_reason", pa.string()),
        *STATUS,
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("cumulative_logprob", pa.float64()),
        ("token_ids", pa.list_(pa.int32())),
        ("token_logprobs", pa.list_(pa.float32())),
    ]
)
SCORES = [
    ("logprob", pa.float64()),
    ("is_greedy", pa.bool_()),
    ("num_tokens", pa.int32()),
    ("token_ids", pa.list_(pa.int32())),
    ("token_logprobs", pa.list_(pa.float32())),
]
SCORE = pa.schema([*SCORES, *STATUS, ("num_bytes", pa.int64())])
NORMS = ("", "_norm", "_bytes")
CHOICES = pa.schema(
    [
        *((name, pa.list_(kind)) for name, kind in SCORES),
        *STATUS,
        *((f"best_choice{norm}", pa.int32()) for norm in NORMS),
        *((f"correct{norm}", pa.bool_()) for norm in NORMS),
    ]
)

logprobs = st.floats(-1e30, 0, allow_subnormal=False)
errors = st.builds(
    lambda row, code, message, count: ErrorRow(None, row, RowError(code, message), count),
    st.integers(0, 2**40),
    st.sampled_from(["bad_type", "not_finite"]),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.none() | st.integers(0, 99),
)


class Python:
    """`Detokenizer.utf8` as its docstring has it."""

    def utf8(self, token_ids: Any, offsets: Any, limits: Any) -> Any:
        texts = [text_of(token_ids[a:b], limit) for a, b, limit in zip(offsets, offsets[1:], limits, strict=False)]
        data = [text.encode() for text in texts]
        return np.frombuffer(b"".join(data), np.uint8), np.cumsum([0, *map(len, data)], dtype=np.int64)


def text_of(token_ids: Any, limit: int | None) -> str:
    data = b"".join(TOKEN_BYTES[i] or b"" for i in token_ids)
    return data[: None if limit is None or limit < 0 else limit].decode("utf-8", "replace")


@st.composite
def generated(draw: Any) -> RowInFlight:
    row = draw(st.integers(0, 2**40))
    prompt = np.ones(draw(st.integers(1, 5)), np.int32)
    requests: list[Any] = [fake_llm.Request(prompt, sample) for sample in range(draw(st.integers(1, 3)))]
    completions: list[Any] = []
    for request in requests:
        pairs = draw(st.lists(st.tuples(st.integers(0, len(TOKEN_BYTES) - 1), logprobs), max_size=6))
        ids, values = np.array([i for i, _ in pairs], np.int32), np.array([value for _, value in pairs])
        reason = draw(st.sampled_from([("length", None), ("stop", 0), ("stop", "x"), ("stop", 12)]))
        kept = draw(st.integers(0, len(ids)))
        limit = draw(st.none() | st.integers(0, sum(len(TOKEN_BYTES[i] or b"") for i in ids[:kept])))
        completions.append(fake_llm.Completion(request, ids, values, *reason, kept, limit))
    return RowInFlight(GenerateRow(None, row, "", SamplingParams()), requests, None, None, completions)


@st.composite
def scored(draw: Any, count: Any) -> RowInFlight:
    row = draw(st.integers(0, 2**40))
    found = []
    texts = [draw(st.sampled_from(["", " ", "a", " b", "  c", "é", " lang"])) for _ in range(draw(count))]
    for _ in texts:
        triples = draw(st.lists(st.tuples(st.integers(0, 99), logprobs, st.booleans()), max_size=4))
        values, flags = np.array([one[1] for one in triples]), np.array([one[2] for one in triples], bool)
        ids = np.array([one[0] for one in triples], np.int32)
        found.append(fake_llm.Completion(None, ids, None, scores=TokenScores(values, flags)))  # type: ignore[arg-type]
    scoring = fake_llm.Scoring(None, [one.token_ids for one in found])
    answer = draw(st.none() | st.integers(0, len(texts) - 1))
    return RowInFlight(ScoreRow(None, row, "", texts, answer=answer), [], None, scoring, found)  # type: ignore[arg-type]


def records(task: str, row: Any, is_list: bool) -> list[dict[str, Any]]:
    """The definition."""
    if isinstance(row, ErrorRow):
        record = {"row": row.row, "status": "error", "error_code": row.error.code, "error": row.error.message}
        more = {"sample_index": 0, "finish_reason": "error", "prompt_tokens": row.prompt_tokens}
        return [record if task == "score" else {**record, **more}]
    if task == "generate":
        return [
            {
                "row": row.row.row,
                "sample_index": sample,
                "completion": text_of(found.token_ids[: found.text_tokens], found.text_bytes),
                "finish_reason": found.finish_reason,
                "stop_reason": None if found.stop_reason is None else str(found.stop_reason),
                "status": "ok",
                "prompt_tokens": len(found.request.prompt_token_ids),
                "completion_tokens": len(found.token_ids),
                "cumulative_logprob": math.fsum(found.token_logprobs),
                "token_ids": found.token_ids.tolist(),
                "token_logprobs": found.token_logprobs.tolist(),
            }
            for sample, found in enumerate(row.completions)
        ]
    columns: dict[str, Any] = {
        "logprob": [math.fsum(found.scores.logprobs) for found in row.completions],
        "is_greedy": [all(found.scores.is_greedy.tolist()) for found in row.completions],
        "num_tokens": [len(found.token_ids) for found in row.completions],
        "token_ids": [found.token_ids.tolist() for found in row.completions],
        "token_logprobs": [found.scores.logprobs.tolist() for found in row.completions],
    }
    texts, answer = row.row.continuations, row.row.answer
    if not is_list:
        own = {name: values[0] for name, values in columns.items()}
        return [{"row": row.row.row, "status": "ok", **own, "num_bytes": len(texts[0].encode())}]
    plain = [text[1:] if text.startswith(" ") else text for text in texts]
    lengths = {"": [1] * len(texts), "_norm": list(map(len, plain)), "_bytes": [len(text.encode()) for text in plain]}
    best = {}
    for norm, sizes in lengths.items():
        values = [p / n if n else -math.inf for p, n in zip(columns["logprob"], sizes, strict=True)]
        best[f"best_choice{norm}"] = max(range(len(values)), key=values.__getitem__)
    right = {f"correct{norm}": None if answer is None else best[f"best_choice{norm}"] == answer for norm in NORMS}
    return [{"row": row.row.row, "status": "ok", **columns, **best, **right}]


def check(task: str, schema: pa.Schema, rows: list[Any]) -> None:
    ordered = [row for row in rows if not isinstance(row, ErrorRow)] + [r for r in rows if isinstance(r, ErrorRow)]
    whole = schema.insert(0, pa.field("row", pa.int64()))
    names = set(whole.names)
    made = [record for row in ordered for record in records(task, row, "best_choice" in schema.names)]
    made = [{name: value for name, value in record.items() if name in names} for record in made]
    expected = pa.Table.from_pylist(made, whole)
    found = pa.Table.from_batches([Results(task, schema, Python()).batch(rows)])
    found.validate(full=True)
    assert found.schema == expected.schema
    assert found.equals(expected)
    assert parquet(found) == parquet(expected.combine_chunks())


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


@given(st.lists(generated() | errors, min_size=1, max_size=6))
def test_completions(rows: list[Any]) -> None:
    check("generate", GENERATE, rows)
    check("generate", pa.schema(list(GENERATE)[:-2]), rows)


@given(st.lists(scored(st.just(1)) | errors, min_size=1, max_size=6))
def test_scores(rows: list[Any]) -> None:
    check("score", SCORE, rows)


@given(st.lists(scored(st.integers(1, 4)) | errors, min_size=1, max_size=6))
def test_scores_of_choices(rows: list[Any]) -> None:
    check("score", CHOICES, rows)
    check("score", pa.schema([field for field in CHOICES if not field.name.startswith("token_")]), rows)
    check(
        "score", pa.schema([field for field in CHOICES if not field.name.startswith(("correct", "best_choice_"))]), rows
    )


@pytest.mark.parametrize(
    ("logprobs", "choices", "norm", "best"),
    [
        ([-2.0, -1.0, -1.0], ["a", "b", "c"], "", 1),
        ([-4.0, -9.0], ["ab", "abcde"], "_norm", 1),
        ([-4.0, -9.0], ["ab", "a   "], "_norm", 0),
        ([-4.0, -7.0], [" ab", "  ab"], "_norm", 0),
        ([-4.0, -5.0], [" ab", "  ab"], "_norm", 1),
        ([-4.0, -5.0], [" ab", " éé"], "_norm", 0),
        ([-4.0, -5.0], [" ab", " éé"], "_bytes", 1),
        ([-4.0, -1.0], ["a", " "], "_norm", 0),
        ([-4.0, -1.0], [" ", ""], "_bytes", 0),
        ([-2.0, -2.0], ["ab", "cd"], "_norm", 0),
    ],
)
def test_the_best_choice(logprobs: list[float], choices: list[str], norm: str, best: int) -> None:
    """One space at the beginning of a choice is the delimiter; a second one is a part of the choice."""
    assert best_choice(logprobs, choices, norm) == best


def test_without_a_tokenizer_there_is_no_text() -> None:
    request = fake_llm.Request([1], 0)
    done = fake_llm.Completion(request, np.array([5, 6], np.int32), np.zeros(2), text_tokens=2)
    row = RowInFlight(GenerateRow(None, 3, "", SamplingParams()), [], None, None, [done])
    batch = Results("generate", GENERATE, None).batch([row])
    assert (batch["completion"].to_pylist(), batch["token_ids"].to_pylist()) == ([""], [[5, 6]])


@pytest.mark.parametrize("kind", ["generate", "score", "choices"])
def test_error_rows_of_a_job(job: Job, kind: str) -> None:
    if kind == "generate":
        job.input(prompt=["a", None])
    else:
        job.settings["task"] = "score"
        job.input(
            context=["a", None], **{"choices": [["x"], ["x"]]} if kind == "choices" else {"continuation": ["x", "y"]}
        )
    assert job.run() == 3
    names = prepared(job).form.results.names
    ok, error = job.rows()
    assert (ok["status"], error["status"], error["error_code"]) == ("ok", "error", "null_prompt")
    kept = {"status", "error_code", "error", *(("sample_index", "finish_reason") if kind == "generate" else ())}
    assert {name for name in names if error[name] is not None} == kept


@pytest.mark.parametrize("tokens", [1, 50, 3000])
def test_no_more_is_held_by_scores_than_is_counted(tokens: int) -> None:
    params, ids = SamplingParams(max_tokens=0), np.ones(3, np.int32)

    def make(row: int) -> RowInFlight:
        request = Request(row, ids, params, next_token_ids=(1,))
        own = TokenScores(np.zeros(tokens), np.zeros(tokens, bool))
        found = Completion(request, np.zeros(0, np.int32), np.zeros(0), "length", prompt_scores=own)
        return RowInFlight(ScoreRow(None, row, f"context {row}", ["x"]), [request], completions=[found])

    tracemalloc.start()
    try:
        make(0)
        before = tracemalloc.get_traced_memory()[0]
        rows = [make(row) for row in range(300)]
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    counted = sum(map(held_bytes, rows))
    assert held <= 1.1 * counted
    assert counted < 8 * held
