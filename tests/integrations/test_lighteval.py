"""The lighteval model: lighteval's real command line over a local task, and single requests."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lighteval.models.custom.custom_model import CustomModelConfig
from lighteval.models.model_input import GenerationParameters
from lighteval.tasks.requests import Doc

import rwkv_batch.integrations.lighteval as rwkv

TASK = """
from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc

def prompt(row, name):
    return Doc(query=row["text"], choices=row["choices"], gold_index=row["answer"], task_name=name)

TASKS_TABLE = [
    LightevalTaskConfig(
        name="local_choices", prompt_function=prompt, hf_repo=FOLDER, hf_subset="default",
        hf_avail_splits=["test"], evaluation_splits=["test"], metrics=[Metrics.loglikelihood_acc],
    ),
    LightevalTaskConfig(
        name="local_completions", prompt_function=prompt, hf_repo=FOLDER, hf_subset="default",
        hf_avail_splits=["test"], evaluation_splits=["test"], metrics=[Metrics.exact_match],
        generation_size=6, stop_sequence=["\\n"],
    ),
]
"""


def ids(text: str) -> list[int]:
    return [byte + 1 for byte in text.encode()]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory):
    """`load(parameters, **class attributes)`: lighteval's model with the bundled model in float32, without a cache."""
    cache = str(tmp_path_factory.mktemp("cache"))

    def get(parameters: dict[str, Any] | None = None, **attributes: Any) -> rwkv.RwkvBatchModel:
        kind = type("Model", (rwkv.RwkvBatchModel,), {"options": {"dtype": "float32"}, **attributes})
        config = CustomModelConfig(model_name="demo", model_definition_file_path=rwkv.__file__, cache_dir=cache)
        generation = GenerationParameters(**(parameters or {}))
        model = kind(config.model_copy(update={"generation_parameters": generation}))
        model._cache = None
        return model

    return get


def document(query: str, choices: list[str], **fields: Any) -> Doc:
    return Doc(query=query, choices=choices, gold_index=0, id="0", task_name="t", **fields)


def test_log_likelihoods_equal_those_of_the_package(load, demo_oracle):
    docs = [document("import ", ["os", "sys", "é\N{SNOWMAN}"]), document("def f(", ["self", "x"])]
    for responses in (
        load().loglikelihood(docs),
        load(options={"dtype": "float32", "max_batch_size": 2}).loglikelihood(docs),
    ):
        for doc, response in zip(docs, responses, strict=True):
            kept = doc.query.rstrip()
            for i, choice in enumerate(doc.choices):
                total, _, is_greedy = demo_oracle.loglikelihood([0, *ids(kept)], ids(doc.query[len(kept) :] + choice))
                assert response.logprobs[i] == pytest.approx(total, abs=1e-3)
                assert response.argmax_logits_eq_gold[i] == is_greedy
                assert response.output_tokens[i] == ids(doc.query[len(kept) :] + choice)


def test_whole_documents_and_chat_prompts_equal_the_package(load, demo_oracle):
    text = "class Stack:\n" * 5
    (response,) = load(add_bos_token=False).loglikelihood_rolling([document(text, [])])
    assert response.logprobs == pytest.approx([demo_oracle.loglikelihood([0], ids(text))[0]], abs=1e-3)
    (response,) = load(use_chat_template=True).loglikelihood([document("a?", ["yes"])])
    context = "User: a?\n\nAssistant:"
    assert response.input == context
    assert response.logprobs == pytest.approx([demo_oracle.loglikelihood([0, *ids(context)], ids(" yes"))[0]], abs=1e-3)


def test_completions_follow_stops_limits_and_samples(load):
    greedy = document("import os", [], generation_size=8, stop_sequences=["\n"])
    (response,) = load().greedy_until([greedy])
    (longer,) = load({"max_new_tokens": 12}).greedy_until([greedy])
    assert longer.text[0].startswith(response.text[0])
    assert "\n" not in longer.text[0]
    sampled = document("import os", [], generation_size=24, num_samples=3)
    (several,) = load({"temperature": 1.0, "seed": 1}).greedy_until([sampled])
    assert len(set(several.text)) == 3


def test_another_model_has_another_cache(tmp_path, checkpoint_file):
    def folder(name: str, **attributes: Any) -> Path:
        kind = type("Model", (rwkv.RwkvBatchModel,), attributes)
        config = CustomModelConfig(model_name=name, model_definition_file_path="x.py", cache_dir=str(tmp_path))
        return kind(config)._cache.cache_dir

    path = str(checkpoint_file("7.0", vocab=257))
    folders = [folder("demo"), folder("demo", add_bos_token=False), folder(path)]
    assert len(set(folders)) == 3
    assert folder("demo") == folders[0]
    assert all(tmp_path in found.parents for found in folders)


def test_the_real_command(tmp_path, monkeypatch, demo_oracle):
    from lighteval.__main__ import app

    # Without lighteval's own tasks: it would import hundreds, one of which downloads a file.
    monkeypatch.setattr("lighteval.tasks.registry.Registry._load_from_files", lambda *_: {})
    monkeypatch.setattr("lighteval.tasks.registry.Registry._load_from_subdirs", lambda *_: {})
    monkeypatch.setattr(CustomModelConfig.model_fields["cache_dir"], "default", str(tmp_path / "cache"))
    CustomModelConfig.model_rebuild(force=True)
    rows: list[dict[str, Any]] = [
        {"text": text, "choices": ["(self", " os", "None"], "answer": answer}
        for text, answer in (("def f", 0), ("import", 1), ("return ", 2), ("def g", 1))
    ]
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows" / "test.parquet")
    (tmp_path / "task.py").write_text(TASK.replace("FOLDER", repr(str(tmp_path / "rows"))))
    arguments = ["custom", "demo", rwkv.__file__, "local_choices|0,local_completions|0"]
    options = ["--custom-tasks", str(tmp_path / "task.py"), "--output-dir", str(tmp_path / "out")]
    app([*arguments, *options], standalone_mode=False)
    (file,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    correct = []
    for row in rows:
        kept = row["text"].rstrip()
        gap = row["text"][len(kept) :]
        totals = [demo_oracle.loglikelihood([0, *ids(kept)], ids(gap + choice))[0] for choice in row["choices"]]
        correct.append(totals.index(max(totals)) == row["answer"])
    assert results["local_choices|0"]["acc"] == sum(correct) / len(correct)
    assert 0 <= results["local_completions|0"]["em"] <= 1


def test_a_model_without_a_tokenizer_is_refused():
    kind = type("Model", (rwkv.RwkvBatchModel,), {"options": {"tokenizer": None}})
    with pytest.raises(ValueError, match="expected a tokenizer"):
        kind(SimpleNamespace(model_name="demo"))
