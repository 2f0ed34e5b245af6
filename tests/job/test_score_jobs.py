"""Score jobs against lm-evaluation-harness and the `rwkv` package, on the same rows and a random model.

The harness computes its metrics from the package's log-likelihoods: nothing of this project takes part.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from oracle import Oracle

from .conftest import Job

pytestmark = pytest.mark.usefixtures("real_engine")

VOCAB = 257
WORDS = ("red", "green", "é", "a long blue one", "x", "ängström", "yes", "ñó möre", "ü ö ä")


@pytest.fixture
def model(checkpoint_file: Any) -> Path:
    path: Path = checkpoint_file("7.0", vocab=VOCAB)
    return path


@pytest.fixture
def package(model: Path, oracle: Any) -> Oracle:
    found: Oracle = oracle("7.0", model)
    return found


def encode(text: str) -> list[int]:
    return [byte + 1 for byte in text.encode()]


def questions(count: int) -> list[dict[str, Any]]:
    """Rows as MMLU has them; texts of different lengths, so that the three accuracies differ."""
    draw = random.Random(5)
    return [
        {
            "question": f"Which is it, {draw.choice(WORDS)} or {i}?",
            "subject": ["maths", "history"][i % 2],
            "choices": draw.sample(WORDS, 4),
            "answer": draw.randrange(4),
        }
        for i in range(count)
    ]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def harness(folder: Path, package: Oracle, tasks: dict[str, str], start: list[int]) -> dict[str, dict[str, float]]:
    """The results of the real harness over local tasks: task → metric → value.

    Args:
        start: token ids that are read before each context.
    """
    from lm_eval.api.model import LM
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    scores = cache(lambda *pair: package.loglikelihood(*map(list, pair)))

    class PackageLM(LM):
        def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
            found = []
            for request in requests:
                context, continuation = map(encode, request.args)
                logprob, _, is_greedy = scores((*start, *context) or (0,), tuple(continuation))
                found.append((logprob, is_greedy))
            return found

        def loglikelihood_rolling(self, requests: Any) -> list[float]:
            return [package.loglikelihood(start or [0], encode(request.args[0]))[0] for request in requests]

        def generate_until(self, requests: Any) -> list[str]:
            raise NotImplementedError

    for name, text in tasks.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\ndataset_path: json\ntest_split: test\n{text}")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = simple_evaluate(PackageLM(), tasks=[*tasks], task_manager=manager, bootstrap_iters=2, log_samples=False)
    assert results is not None
    return {
        name: {metric.partition(",")[0]: value for metric, value in found.items() if metric != "alias"}
        for name, found in results["results"].items()
    }


def kwargs(folder: Path, data: str) -> str:
    return f"dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {folder}/cache}}\n"


def report(job: Job) -> dict[str, Any]:
    return json.loads((job.state / "report.json").read_text())


def values(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: metric["value"] for name, metric in metrics.items()}


def run(job: Job, model: Path, input_path: str, **settings: Any) -> dict[str, Any]:
    job.settings = {
        "task": "score",
        "model": {"path": str(model), "dtype": "float32"},
        "engine": {"device": "cpu", "max_batch_size": 8},
        "input": {"path": input_path, **settings.pop("input", {})},
        "score": settings,
        "output": {"path": str(job.folder / f"out-{len([*job.folder.glob('out-*')])}"), "input_columns": "none"},
    }
    assert job.run() == 0
    return report(job)


MMLU = """
doc_to_text: "{{question}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nD. {{choices[3]}}\\nAnswer:"
doc_to_choice: %s
doc_to_target: answer
output_type: multiple_choice
metric_list:
- {metric: acc, aggregation: mean, higher_is_better: true}
- {metric: acc_norm, aggregation: mean, higher_is_better: true}
- {metric: acc_bytes, aggregation: mean, higher_is_better: true}
"""
TEMPLATE = "{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"


@pytest.mark.parametrize("start", ["token 0", "newline"])
def test_accuracies_equal_those_of_the_harness(
    job: Job, model: Path, package: Oracle, tmp_path: Path, start: str
) -> None:
    """MMLU by letter and by text, of all rows and of each subject."""
    rows = questions(24)
    tasks = {}
    data = {"all": write_lines(tmp_path / "all.jsonl", rows)}
    for subject in ("maths", "history"):
        data[subject] = write_lines(tmp_path / f"{subject}.jsonl", [row for row in rows if row["subject"] == subject])
    for name, path in data.items():
        tasks[f"letter_{name}"] = kwargs(tmp_path, path) + MMLU % '["A", "B", "C", "D"]'
        tasks[f"text_{name}"] = kwargs(tmp_path, path) + MMLU % '"{{choices}}"'
    is_bos = start == "token 0"
    expected = harness(tmp_path, package, tasks, [0] if is_bos else encode("\n"))
    convention: dict[str, Any] = {"add_bos_token": True} if is_bos else {"prefix": "\n"}
    seen = set()
    for kind, template in (("letter", " {{ letter }}"), ("text", " {{ choice }}")):
        found = run(
            job,
            model,
            data["all"],
            input={"template": TEMPLATE},
            choice_template=template,
            group_by="subject",
            **convention,
        )
        groups = {"all": found["scores"], **found["score_groups"]["groups"]}
        assert groups.keys() == data.keys()
        for name, metrics in groups.items():
            harness_metrics = expected[f"{kind}_{name}"]
            mine = dict(zip(("acc", "acc_norm", "acc_bytes"), values(metrics).values(), strict=True))
            assert mine == pytest.approx({metric: harness_metrics[metric] for metric in mine})
            seen.add(tuple(mine.values()))
            if name != "all":
                assert metrics["accuracy"]["stderr"] == pytest.approx(harness_metrics["acc_stderr"])
    assert any(len(set(accuracies)) == 3 for accuracies in seen), "the three accuracies should differ somewhere"


def test_words_equal_those_of_the_harness(job: Job, model: Path, package: Oracle, tmp_path: Path) -> None:
    """LAMBADA as it is published: the last word of each text."""
    draw = random.Random(3)
    rows = [{"text": " ".join(draw.choice(WORDS) for _ in range(draw.randint(2, 6)))} for _ in range(12)]
    rows += [{"text": f"{row['text']} {greedy_word(package, row['text'])}"} for row in rows[:6]]
    data = write_lines(tmp_path / "words.jsonl", rows)
    task = """
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list:
- {metric: perplexity, aggregation: perplexity, higher_is_better: false}
- {metric: acc, aggregation: mean, higher_is_better: true}
"""
    expected = harness(tmp_path, package, {"words": kwargs(tmp_path, data) + task}, [0])["words"]
    found = run(
        job,
        model,
        data,
        input={"template": "{{text.split(' ')[:-1]|join(' ')}}"},
        continuation_template="{{' '+text.split(' ')[-1]}}",
        add_bos_token=True,
    )["scores"]
    assert found["row_perplexity"]["value"] == pytest.approx(expected["perplexity"], rel=1e-4)
    assert found["greedy_match"]["value"] == pytest.approx(expected["acc"])


def greedy_word(package: Oracle, text: str) -> str:
    """A word of one letter; not the model's choice, but one that it might make."""
    logits, _ = package.forward([0, *encode(text), *encode(" ")])
    letters = encode("abcdefghijklmnopqrstuvwxyz")
    return chr(max(letters, key=lambda token: logits[token].item()) - 1)


def test_documents_equal_those_of_the_harness(job: Job, model: Path, package: Oracle, tmp_path: Path) -> None:
    rows = [{"page": " ".join(WORDS[: 3 + i]) + "\n"} for i in range(5)]
    data = write_lines(tmp_path / "pages.jsonl", rows)
    task = 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{page}}"\nmetric_list:\n'
    task += "- {metric: bits_per_byte}\n- {metric: byte_perplexity}\n"
    expected = harness(tmp_path, package, {"pages": kwargs(tmp_path, data) + task}, [0])["pages"]
    found = run(job, model, data, input={"columns": {"text": "page"}})["scores"]
    assert found["bits_per_byte"]["value"] == pytest.approx(expected["bits_per_byte"], rel=1e-5)
    assert 2 ** found["bits_per_byte"]["value"] == pytest.approx(expected["byte_perplexity"], rel=1e-5)


@pytest.mark.parametrize("bos", [False, True])
def test_compression_equals_that_of_uncheatable_eval(
    job: Job, model: Path, package: Oracle, tmp_path: Path, bos: bool
) -> None:
    """Its evaluator averages over texts: losses of chunks from a fresh state, and bytes of whole texts."""
    texts = [" ".join(WORDS[i:] * 3) for i in range(4)]
    losses = []
    for text in texts:
        tokens, loss = encode(text), 0.0
        for first in range(0, len(tokens), 16):
            chunk = [0] * bos + tokens[first : first + 16]
            if len(chunk) > 1:
                loss -= package.loglikelihood(chunk[:1], chunk[1:])[0]
        losses.append(loss)
    mean_bytes = sum(len(text.encode()) for text in texts) / len(texts)
    expected = sum(losses) / len(losses) / mean_bytes * (1 / math.log(2)) * 0.125 * 100
    data = write_lines(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    found = run(job, model, data, chunk_tokens=16, add_bos_token=bos)["scores"]
    assert found["compression_percent"]["value"] == pytest.approx(expected, rel=1e-5)
    for row, loss in zip(job.rows(), losses, strict=True):
        assert -row["logprob"] == pytest.approx(loss, abs=2e-3)


@pytest.mark.parametrize(
    "write", [lambda row: row["answer"], lambda row: "ABCD"[row["answer"]], lambda row: row["choices"][row["answer"]]]
)
def test_answers_in_any_form_give_the_same_report(
    job: Job, model: Path, tmp_path: Path, write: Callable[[dict[str, Any]], Any]
) -> None:
    rows = questions(12)
    plain = write_lines(tmp_path / "plain.jsonl", rows)
    other = write_lines(tmp_path / "other.jsonl", [{**row, "answer": write(row)} for row in rows])
    found = [
        run(job, model, data, input={"template": TEMPLATE}, choice_template=" {{ letter }}") for data in (plain, other)
    ]
    assert values(found[0]["scores"]) == values(found[1]["scores"])
