"""The scores in the report of a score job, against sums over the output's rows."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy
import pyarrow as pa
import pytest

from rwkv_batch import cli
from rwkv_batch.job.report import scores as scores_of_jobs
from rwkv_batch.job.report.page_results import value_text
from rwkv_batch.job.report.score_conventions import conventions, kind_of, shown_metric
from rwkv_batch.job.report.scores import ScoreSummary

from ..conftest import Job


def report_of(job: Job) -> dict[str, Any]:
    return json.loads((job.state / "report.json").read_text())


def answers(job: Job, **settings: Any) -> dict[str, Any]:
    """The scores in the report of a score job."""
    job.settings["task"] = "score"
    assert job.set(**settings).run() == 0
    return report_of(job)["scores"]


def best(values: list[float]) -> int:
    return values.index(max(values))


def right_rows(job: Job) -> dict[str, list[bool]]:
    """What each accuracy is the mean of: lm-evaluation-harness's definitions, for choices as they were scored."""
    found: dict[str, list[bool]] = {"accuracy": [], "accuracy_norm": [], "accuracy_bytes": []}
    for row in job.rows():
        if row["answer"] is None:
            continue
        texts = [text[1:] if text[0] == " " else text for text in row["choices"]]
        per_character = [p / len(text) for p, text in zip(row["logprob"], texts, strict=True)]
        per_byte = [p / len(text.encode()) for p, text in zip(row["logprob"], texts, strict=True)]
        for name, values in zip(found, (row["logprob"], per_character, per_byte), strict=True):
            found[name].append(best(values) == row["answer"])
    return found


def test_accuracies_are_counted_where_the_answer_is_known(job: Job) -> None:
    choices = [[" a", "some longer text", " éé", "  x"][: 2 + i % 3] for i in range(60)]
    answer = [[0, 1, 1, None, 0][i % 5] for i in range(60)]
    job.input(context=[f"c{i}" for i in range(60)], choices=choices, answer=answer)
    scores = answers(job)
    expected = right_rows(job)
    assert scores.keys() == expected.keys()
    assert len({tuple(values) for values in expected.values()}) == 3
    for name, values in expected.items():
        share = sum(values) / len(values)
        assert scores[name]["value"] == pytest.approx(share)
        assert scores[name]["rows"] == len(values)
        assert scores[name]["stderr"] == pytest.approx((share * (1 - share) / len(values)) ** 0.5, rel=0.15)
    for row in job.rows():
        assert row["correct"] == (None if row["answer"] is None else row["best_choice"] == row["answer"])
    assert f"<b>{value_text('accuracy', scores['accuracy']['value'])}</b>" in (job.state / "report.html").read_text()


def test_perplexities_and_bits_per_byte(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    texts: list[str | None] = [f"text {i} é" * (1 + i % 3) for i in range(20)]
    scores = answers(job.input(context=["c"] * 20, continuation=texts), output__input_columns="none")
    rows = job.rows()
    total = -sum(row["logprob"] for row in rows)
    num_bytes = sum(len((text or "").encode()) for text in texts)
    assert scores.keys() == {"greedy_match", "row_perplexity", "token_perplexity", "bits_per_byte"}
    assert scores["bits_per_byte"]["value"] == pytest.approx(total / num_bytes / math.log(2))
    assert scores["token_perplexity"]["value"] == pytest.approx(
        math.exp(total / sum(row["num_tokens"] for row in rows))
    )
    assert scores["row_perplexity"]["value"] == pytest.approx(math.exp(total / len(rows)))
    assert scores["greedy_match"]["value"] == sum(row["is_greedy"] for row in rows) / 20
    assert 0 < scores["bits_per_byte"]["stderr"] < scores["bits_per_byte"]["value"]
    assert "bits_per_byte" in capsys.readouterr().out


def test_compression_of_documents(job: Job) -> None:
    texts = [f"text {i} é" * (1 + i % 3) for i in range(20)]
    scores = answers(job.input(text=texts))
    total = -sum(row["logprob"] for row in job.rows())
    assert scores.keys() == {"bits_per_byte", "compression_percent", "token_perplexity"}
    num_bytes = sum(len(text.encode()) for text in texts)
    assert scores["compression_percent"]["value"] == pytest.approx(100 * total / math.log(2) / 8 / num_bytes)
    bits = scores["bits_per_byte"]
    assert scores["compression_percent"]["stderr"] / bits["stderr"] == pytest.approx(12.5)
    job.input(text=[[1, 2, 3]]).set(output__path=str(job.folder / "ids"))
    assert answers(job).keys() == {"token_perplexity"}


def test_scores_do_not_need_the_columns_that_the_output_repeats(job: Job) -> None:
    job.input(context=["c"] * 4, choices=[["a", "b"]] * 4, answer=[0, 1, 0, 1])
    expected = answers(job)
    found = answers(job, output__path=str(job.folder / "none"), output__input_columns="none")
    assert found == expected and found.keys() == {"accuracy", "accuracy_norm", "accuracy_bytes"}


def test_scores_under_other_names(job: Job) -> None:
    """The input has columns with the names of the scores; its answer is one of them."""
    job.input(context=["c"] * 4, choices=[["a", "b"]] * 4, answer=[0, 1, 0, 1])
    expected = answers(job)
    job.input(context=["c"] * 4, choices=[["a", "b"]] * 4, best_choice=[0, 1, 0, 1], logprob=["x"] * 4, correct=[1] * 4)
    job.set(input__columns={"answer": "best_choice"}, output__path=str(job.folder / "renamed"))
    renamed = {"best_choice": "is_greedy", "is_greedy": "greedy", "logprob": "score", "correct": "right"}
    assert answers(job, output__columns=renamed) == expected


def test_choices_that_are_token_ids_have_no_length(job: Job) -> None:
    job.input(context=[[1]] * 4, choices=[[[2], [3, 4]]] * 4, answer=["A", "b", "A", "B"])
    assert answers(job).keys() == {"accuracy"}
    assert {"best_choice", "correct"} == {name for name in job.table().column_names if "o" in name} & {
        "best_choice",
        "best_choice_norm",
        "correct",
        "correct_norm",
    }


@pytest.mark.parametrize("kind", ["choices", "continuation"])
def test_groups_of_rows(job: Job, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """A group's value is that over its rows alone; the standard error of a mean is the usual one, with n - 1."""
    subjects = [["<maths>", "history", None][i % 3] for i in range(30)]
    job.input(
        context=[f"c{i}" for i in range(30)],
        subject=subjects,
        **{"choices": [["a", "bb"]] * 30, "answer": [i % 2 for i in range(30)]}
        if kind == "choices"
        else {"continuation": [f"t{i}" for i in range(30)]},
    )
    answers(job, score__group_by="subject", output__input_columns="none")
    assert "subject" in job.table().column_names
    report = report_of(job)
    assert report["score_groups"]["column"] == "subject"
    groups = report["score_groups"]["groups"]
    assert list(groups) == ["<maths>", "history", "null"]
    for name, metrics in groups.items():
        rows = [row for row in job.rows() if str(row["subject"]).replace("None", "null") == name]
        metric, column = ("accuracy", "correct") if kind == "choices" else ("greedy_match", "is_greedy")
        values = [float(row[column]) for row in rows]
        assert metrics[metric]["value"] == pytest.approx(sum(values) / 10)
        assert metrics[metric]["stderr"] == pytest.approx(statistics.stdev(values) / math.sqrt(10))
        assert metrics[metric]["rows"] == 10
        if kind == "continuation":
            nats = [-row["logprob"] for row in rows]
            perplexity = math.exp(sum(nats) / 10)
            assert metrics["row_perplexity"]["value"] == pytest.approx(perplexity)
            assert metrics["row_perplexity"]["stderr"] == pytest.approx(
                perplexity * statistics.stdev(nats) / math.sqrt(10)
            )
    assert "group   history (10 rows): " in capsys.readouterr().out
    page = (job.state / "report.html").read_text()
    assert "<h3>By subject</h3>" in page and "&lt;maths&gt;" in page and "<maths>" not in page


def test_groups_may_be_asked_for_later(job: Job) -> None:
    job.input(context=["c"] * 4, choices=[["a", "b"]] * 4, answer=[0, 1, 0, 1], subject=["x", "y", "x", "y"])
    answers(job)
    assert "score_groups" not in report_of(job)
    answers(job, score__group_by="subject")
    assert list(report_of(job)["score_groups"]["groups"]) == ["x", "y"]
    assert cli.main(["report", str(job.output)]) == 0
    assert list(report_of(job)["score_groups"]["groups"]) == ["x", "y"]


def test_very_many_groups_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_of_jobs, "MOST_GROUPS", 3)
    summary = ScoreSummary({}, "choices", "id")
    batch = pa.RecordBatch.from_pydict({"correct": pa.array([True] * 10), "id": pa.array(range(10))})
    summary.add(batch, batch)
    groups = summary.groups()
    assert sum(metrics["accuracy"]["rows"] for metrics in groups.values()) == 10
    assert list(groups) == ["(other groups)", "0", "1", "2"]


def test_the_conventions_are_in_the_report(job: Job) -> None:
    job.input(question=["c"] * 4, choices=[["a", "b"]] * 4, answer=["B", "a", "A", None])
    score = {"prefix": "\n", "add_bos_token": True, "choice_template": " {{ letter }}"}
    job.settings["score"] = score
    answers(job, input__template="{{ question }}")
    found = report_of(job)["conventions"]
    assert {**score, "input.template": "{{ question }}", "answer": "letter"}.items() <= found.items()
    assert "per character of the choice, without one space at its beginning" in found["accuracy_norm"]
    assert "Conventions of these scores" in (job.state / "report.html").read_text()
    job.input(text=["abc"]).settings.update(score={"chunk_tokens": 7}, input={"path": job.settings["input"]["path"]})
    answers(job, output__path=str(job.folder / "documents"))
    expected = {"add_bos_token": False, "prefix": None, "chunk_tokens": 7, "encoding": "the document"}
    assert expected.items() <= report_of(job)["conventions"].items()


def test_settings_of_an_earlier_version_have_the_conventions_that_it_had() -> None:
    old = {"task": "score", "input.columns.context": "c", "input.columns.choices": "d", "input.columns.answer": "a"}
    assert kind_of(old) == "choices"
    assert conventions(old)["answer"] == "index" and conventions(old)["add_bos_token"] is False
    assert kind_of({"task": "score", "input.columns.continuation": "text"}) == "document"
    assert kind_of({"task": "score", "input.columns.context": "c", "input.columns.continuation": "d"}) == "continuation"


@pytest.mark.parametrize(("columns", "metrics"), [(["a"], ["accuracy"]), (["a", "c"], ["accuracy", "accuracy_norm"])])
def test_parts_of_an_earlier_version_give_the_same_accuracies(columns: list[str], metrics: list[str]) -> None:
    """They say which choice is the best, and not whether it is right."""
    logprob, choices = [[-4.0, -5.0], [-3.0, -1.0], [-1.0, -2.0], None], [[" a", " bcd"], ["é", "b"], ["a", "b"], ["x"]]
    answer = [1, 0, 7, 0]
    kinds = {"logprob": pa.list_(pa.float64()), "c": pa.list_(pa.string()), "a": pa.int64(), "best_choice": pa.int32()}
    values = {"logprob": logprob, "c": choices, "a": answer, "best_choice": [0, 1, 0, None]}
    batch = pa.RecordBatch.from_pydict({name: pa.array(values[name], kinds[name]) for name in kinds})
    summary = ScoreSummary({"choices": "c", "answer": "a"}, "choices")
    summary.add(batch.select(["logprob", "best_choice"]), batch.select(columns))
    found = {name: metric["value"] for name, metric in summary.metrics().items()}
    assert found.keys() >= set(metrics)
    assert found["accuracy"] == 0.0
    if "accuracy_norm" in metrics:
        assert (found["accuracy_norm"], found["accuracy_bytes"]) == (0.5, 0.5)


def test_many_rows_are_resampled_in_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_of_jobs, "SAMPLES", 50)
    summary = ScoreSummary({})
    random = numpy.random.default_rng(0)
    values = -random.exponential(size=2000)
    for part in numpy.split(values, 4):
        columns = {"logprob": part, "num_tokens": numpy.ones(500, int), "is_greedy": part > -1}
        batch = pa.RecordBatch.from_pydict({name: pa.array(column) for name, column in columns.items()})
        summary.add(batch, batch.select([]))
    metrics = summary.metrics()
    share = (values > -1).mean()
    assert metrics["greedy_match"]["value"] == pytest.approx(share)
    assert metrics["greedy_match"]["stderr"] == pytest.approx((share * (1 - share) / 2000) ** 0.5, rel=0.35)
    assert metrics["token_perplexity"]["value"] == pytest.approx(math.exp(-values.mean()))


def test_numbers_beyond_all_bounds_stay_numbers() -> None:
    summary = ScoreSummary({})
    columns = {"logprob": [-1e3, -1e9], "num_tokens": [1, 1], "is_greedy": [False, False], "num_bytes": [1, 1]}
    batch = pa.RecordBatch.from_pydict({name: pa.array(column) for name, column in columns.items()})
    summary.add(batch, batch.select([]))
    assert all(math.isfinite(value) for metric in summary.metrics().values() for value in metric.values())


def test_a_large_perplexity_is_shown_with_six_digits() -> None:
    assert shown_metric({"value": 198256802843.55, "stderr": 12345.678}) == "1.98257e+11 ± 1.23e+04"
    assert shown_metric({"value": 0.12345, "stderr": 0.01}) == "0.1235 ± 0.0100"


def test_a_damaged_log_leaves_out_the_groups(job: Job, tmp_path: Path) -> None:
    job.input(context=["c"] * 2, choices=[["a", "b"]] * 2, answer=[0, 1], subject=["x", "y"])
    answers(job, score__group_by="subject")
    for path in job.state.glob("log*.jsonl"):
        path.unlink()
    assert cli.main(["report", str(job.output)]) == 0
    assert report_of(job)["scores"].keys() == {"accuracy", "accuracy_norm", "accuracy_bytes"}
