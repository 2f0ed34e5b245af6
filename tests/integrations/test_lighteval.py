"""The lighteval model: lighteval's real command line over a local task, and single requests."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from lighteval.models.custom.custom_model import CustomModelConfig
from lighteval.models.model_input import GenerationParameters
from lighteval.tasks.requests import Doc

import rwkv_batch.integrations.lighteval as rwkv
from rwkv_batch.errors import ConfigurationError
from rwkv_batch.integrations.lighteval_arguments import given_in, sampling_params

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


def test_a_repeated_document_is_sampled_anew_and_a_seed_gives_other_samples(load):
    docs = [document("import os", [], generation_size=24) for _ in range(2)]

    def texts(seed: int) -> list[str]:
        return [response.text[0] for response in load({"temperature": 1.0, "seed": seed}).greedy_until(docs)]

    assert len({*texts(1), *texts(2)}) == 4
    assert texts(1) == texts(1)


def force(patch: pytest.MonkeyPatch, text: str) -> None:
    """Makes every completion this text."""
    patch.setattr(rwkv, "sampling_params", lambda *given: replace(sampling_params(*given), regex=re.escape(text)))


def test_a_completion_ends_where_the_turn_of_the_chat_format_ends(load, monkeypatch):
    """A model that goes on with the user's next turn."""
    turn = " 4\n\nUser: 9+9?"
    force(monkeypatch, turn)
    (response,) = load(use_chat_template=True).greedy_until([document("2+2?", [], generation_size=40)])
    (plain,) = load().greedy_until([document("2+2?", [], generation_size=40)])
    assert (response.input, response.text) == ("User: 2+2?\n\nAssistant:", [" 4"])
    assert plain.text == [turn]


@pytest.mark.parametrize(
    ("think", "forced", "text"), [("open", ">so</think>4", "<think>so</think>4"), ("fake", ">4", "4")]
)
def test_thoughts_are_whole_so_that_lighteval_can_remove_them(load, monkeypatch, think, forced, text):
    force(monkeypatch, forced)
    model = load(use_chat_template=True, think=think)
    (response,) = model.greedy_until([document("2+2?", [], generation_size=40)])
    assert response.text == [text]


def test_stops_of_the_task_and_of_the_user_come_with_those_of_the_format(load):
    model = load({"stop_tokens": ["b", "a"]}, use_chat_template=True, chat_format="bot")
    doc = document("x", [], stop_sequences=["a"], num_samples=2)
    params = sampling_params(model.config.generation_parameters, doc, model._chat.stop)
    assert params.stop_strings == ("a", "b", *model._chat.stop)
    assert (params.n, params.temperature, params.max_tokens) == (2, 0.0, 256)


def test_a_space_goes_before_an_answer_only_in_a_chat_format(load, demo_oracle):
    """The task has written the beginning of the answer itself: what it asks for is what is scored."""
    context = "User: q\n\nAssistant:"
    (plain,) = load().loglikelihood([document(context, ["A"])])
    assert plain.output_tokens == [ids("A")]
    assert plain.logprobs == pytest.approx([demo_oracle.loglikelihood([0, *ids(context)], ids("A"))[0]], abs=1e-3)
    (chat,) = load(use_chat_template=True).loglikelihood([document("q", ["A"])])
    assert (chat.input, chat.output_tokens) == (context, [ids(" A")])


def test_the_results_record_arguments_and_conventions(load):
    model = load(use_chat_template=True, chat_format="bot", add_bos_token=False)
    recorded = json.loads(json.dumps(model.config.model_dump()))["rwkv_batch"]
    assert recorded["arguments"] == {"dtype": "float32"}
    expected = {"add_bos_token": False, "use_chat_template": True, "chat_format": "bot", "think": "none", "seed": 0}
    assert expected.items() <= recorded.items()
    assert recorded["chat_stop"] == list(model._chat.stop)


def test_model_name_brings_arguments():
    name = (
        "model_name=demo,dtype=float32,max_batch_size=3,add_bos_token=false,use_chat_template=true,chat_format=bot,"
        'system_prompt="a, b",generation_parameters={temperature:0.5,seed:7,stop_tokens:["x:y", z]}'
    )
    config = CustomModelConfig(model_name=name, model_definition_file_path=rwkv.__file__)
    model = rwkv.RwkvBatchModel(config)
    assert (model.config.model_name, model.config.system_prompt) == ("demo", "a, b")
    parameters = model.config.generation_parameters
    assert (parameters.temperature, parameters.seed, parameters.stop_tokens) == (0.5, 7, ["x:y", "z"])
    assert str(model.llm.summary) == "demo, rwkv7 1.6M, cpu float32, 3 slots"
    assert (model.add_bos_token, model.use_chat_template, model._chat.name) == (False, True, "bot")
    assert given_in("a=b/model.pth") == ("a=b/model.pth", {}, {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model_name=demo,dtyp=float32", "model arguments: unknown argument 'dtyp' (did you mean 'dtype'?)"),
        ("model_name=demo,max_batch_size=abc", "max_batch_size: got 'abc', expected an integer"),
        ("model_name=demo,dtype", "model arguments: got 'dtype', expected name=value"),
        ("model_name=demo,add_bos_token=maybe", "model arguments: add_bos_token: got 'maybe', expected true or false"),
        ("model_name=demo,think=loud", "think: got 'loud', expected none, open or fake"),
        ("model_name=demo,generation_parameters={temprature:1}", "generation_parameters.temprature: got 1"),
        ("model_name=demo,generation_parameters={length_penalty:2}", "generation_parameters.length_penalty: got 2"),
        ("model_name=demo,dtype=[", "model arguments: dtype: got '[', expected a value in YAML"),
        ("no such file.pth", "no such file.pth"),
    ],
)
def test_wrong_arguments_are_one_sentence(name, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)) as caught:
        rwkv.RwkvBatchModel(CustomModelConfig(model_name=name, model_definition_file_path="x.py"))
    assert isinstance(caught.value, typer.BadParameter)  # the command prints it without a traceback


def test_a_document_with_images_is_refused(load):
    with pytest.raises(ValueError, match="images: the document 0 of t has it, expected none"):
        load().greedy_until([document("x", [], images=["picture"])])


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


ROWS: list[dict[str, Any]] = [
    {"text": text, "choices": ["(self", " os", "None"], "answer": answer}
    for text, answer in (("def f", 0), ("import", 1), ("return ", 2), ("def g", 1))
]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """`command(MODEL_NAME, **settings)`: runs lighteval's command over the local tasks."""
    from lighteval.__main__ import app

    # Without lighteval's own tasks: it would import hundreds, one of which downloads a file.
    monkeypatch.setattr("lighteval.tasks.registry.Registry._load_from_files", lambda *_: {})
    monkeypatch.setattr("lighteval.tasks.registry.Registry._load_from_subdirs", lambda *_: {})
    monkeypatch.setattr(CustomModelConfig.model_fields["cache_dir"], "default", str(tmp_path / "cache"))
    CustomModelConfig.model_rebuild(force=True)
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows" / "test.parquet")
    (tmp_path / "task.py").write_text(TASK.replace("FOLDER", repr(str(tmp_path / "rows"))))

    def run(name: str, **settings: Any) -> None:
        arguments = ["custom", name, rwkv.__file__, "local_choices|0,local_completions|0"]
        options = ["--custom-tasks", str(tmp_path / "task.py"), "--output-dir", str(tmp_path / "out")]
        app([*arguments, *options], **settings)

    return run


def test_wrong_arguments_end_the_real_command_without_a_traceback(command, capfd):
    with pytest.raises(SystemExit) as caught:
        command("model_name=demo,dtyp=float32", standalone_mode=True)
    out, err = capfd.readouterr()
    assert caught.value.code not in (0, None)
    assert "Traceback" not in out + err
    assert "unknown argument 'dtyp' (did you mean 'dtype'?)" in " ".join(re.sub("[│\n]", " ", err).split())


def test_the_real_command(command, tmp_path, demo_oracle, capfd):
    command("model_name=demo,dtype=float32,seed=5", standalone_mode=False)
    assert "demo, rwkv7 1.6M, cpu float32" in capfd.readouterr().err
    (file,) = (tmp_path / "out").rglob("results_*.json")
    written = json.loads(file.read_text())
    results, recorded = written["results"], written["config_general"]["model_config"]["rwkv_batch"]
    assert (recorded["arguments"], recorded["seed"]) == ({"dtype": "float32", "seed": "5"}, 5)
    assert file.parent == tmp_path / "out" / "results" / "demo"
    correct = []
    for row in ROWS:
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
