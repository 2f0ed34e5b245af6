"""Scripts that are written for vLLM run with only their import changed, and give what vLLM's documentation says."""

from __future__ import annotations

import json
import math
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rwkv_batch import vllm_arguments

OFFLINE = """
from vllm import LLM, SamplingParams

prompts = ["def mean(values):", "class Stack:", "import os", "for i in range("]
sampling_params = SamplingParams(temperature=0.8, top_p=0.95)


def main():
    llm = LLM(model="demo", tensor_parallel_size=1, trust_remote_code=True, gpu_memory_utilization=0.6,
              max_model_len=2048, enforce_eager=True, dtype="float32", seed=0, max_num_seqs=8)
    outputs = llm.generate(prompts, sampling_params)
    for output in outputs:
        generated_text = output.outputs[0].text
        print(f"Prompt: {output.prompt!r}, Generated text: {generated_text!r}")
    return outputs


if __name__ == "__main__":
    found = main()
"""

CHAT = """
from vllm import LLM
from vllm.sampling_params import SamplingParams

llm = LLM("demo", max_num_seqs=8)
sampling_params = llm.get_default_sampling_params()
sampling_params.max_tokens = 12
sampling_params.temperature = 0
conversation = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello! How can I assist you today?"},
    {"role": "user", "content": "Write an essay about the importance of higher education."},
]
one = llm.chat(conversation, sampling_params, use_tqdm=False)
many = llm.chat([conversation for _ in range(10)], sampling_params, use_tqdm=True, lora_request=None,
                chat_template_content_format="auto")
for output in many:
    print(f"Prompt: {output.prompt!r}, Generated text: {output.outputs[0].text!r}")

tokenizer = llm.get_tokenizer()
text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True)
by_hand = llm.generate([text], sampling_params)
by_ids = llm.generate([{"prompt_token_ids": ids}], sampling_params)
"""

STRUCTURED = """
from enum import Enum
from pydantic import BaseModel
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

MAX_TOKENS = 60
choice = StructuredOutputsParams(choice=["Positive", "Negative"])
regex = StructuredOutputsParams(regex=r"\\w+@\\w+\\.com\\n")


class CarType(str, Enum):
    SEDAN = "SEDAN"
    SUV = "SUV"


class CarDescription(BaseModel):
    is_new: bool
    car_type: CarType


schema = CarDescription.model_json_schema()
as_json = StructuredOutputsParams(json=schema)
grammar = StructuredOutputsParams(grammar='''
root ::= "SELECT " column " FROM " table
column ::= "col_1" | "col_2"
table ::= "table_1" | "table_2"
''')
llm = LLM(model="demo", max_model_len=100)


def generate_output(prompt, params):
    sampling_params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, structured_outputs=params)
    return llm.generate(prompt, sampling_params=sampling_params)[0].outputs[0].text


texts = {
    "choice": generate_output("Classify this sentiment: vLLM is wonderful!", choice),
    "regex": generate_output("Generate an email address for Alan Turing: ", regex),
    "json": generate_output("Generate a JSON with the brand and the type of a car", as_json),
    "grammar": generate_output("Generate an SQL query to show 'username' and 'email'", grammar),
}
"""


@pytest.fixture(autouse=True)
def nothing_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_arguments, "_warned", set())


Run = Callable[[str], dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a script of vLLM with its imports changed and nothing else; returns its variables."""

    def run(script: str) -> dict[str, Any]:
        path = tmp_path / "script.py"
        path.write_text(re.sub(r"^from vllm\b", "from rwkv_batch", script, flags=re.MULTILINE))
        return runpy.run_path(str(path), run_name="__main__")

    return run


def test_offline_generation(run: Run, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    found = run(OFFLINE)["found"]
    printed = capsys.readouterr()
    assert [len(output.outputs[0].token_ids) for output in found] == [16, 16, 16, 16]
    assert [output.prompt for output in found] == ["def mean(values):", "class Stack:", "import os", "for i in range("]
    assert [output.request_id for output in found] == ["0", "1", "2", "3"]
    assert all(output.finished and output.outputs[0].finished() for output in found)
    assert len(printed.out.splitlines()) == 4
    assert "Processed prompts" not in printed.err, "standard error is no terminal"
    warned = [record.getMessage() for record in caplog.records if "has no effect" in record.getMessage()]
    assert len(warned) == 4, "tensor_parallel_size, trust_remote_code, max_model_len, enforce_eager"


def test_chat(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(CHAT)
    (one,) = found["one"]
    assert one.prompt.endswith("education.\n\nAssistant:")
    assert one.prompt_token_ids == found["ids"]
    assert [output.outputs[0].text for output in found["many"]] == [one.outputs[0].text] * 10
    assert len(one.outputs[0].token_ids) <= 12
    assert "10/10" in capsys.readouterr().err
    for (other,) in (found["by_hand"], found["by_ids"]):
        assert one.outputs[0].text == other.outputs[0].text[: len(one.outputs[0].text)]
        assert other.prompt_token_ids == found["ids"]


def test_structured_outputs(run: Run) -> None:
    pytest.importorskip("llguidance")
    found = run(STRUCTURED)
    texts = found["texts"]
    assert texts["choice"] in ("Positive", "Negative")
    assert re.match(r"\w+(@\w*(\.com\n)?)?", texts["regex"])
    jsonschema.validate(json.loads(texts["json"]), found["schema"])
    assert re.fullmatch(r"SELECT col_[12] FROM table_[12]", texts["grammar"])


def test_parameters_for_each_prompt_and_several_samples(run: Run) -> None:
    script = """
from vllm import LLM, SamplingParams
llm = LLM("demo")
params = [SamplingParams(n=2, seed=i, max_tokens=i + 2, stop=["\\n\\n\\n\\n"], temperature=1.5) for i in range(3)]
first = llm.generate(["a = ", "b = ", "c = "], params, use_tqdm=False)
again = llm.generate(["a = ", "b = ", "c = "], sampling_params=params, use_tqdm=False)
"""
    found = run(script)
    assert [[len(one.token_ids) for one in output.outputs] for output in found["first"]] == [[2, 2], [3, 3], [4, 4]]
    assert found["first"] == found["again"]
    assert [output.request_id for output in found["again"]] == ["3", "4", "5"]
    assert [one.index for one in found["first"][0].outputs] == [0, 1]


def test_log_probabilities(run: Run) -> None:
    script = """
from vllm import LLM, SamplingParams
llm = LLM("demo")
params = SamplingParams(logprobs=3, prompt_logprobs=1, max_tokens=5, temperature=2.0, seed=1)
(output,) = llm.generate("import", params, use_tqdm=False)
chosen = [next(iter(position.values())) for position in output.outputs[0].logprobs]
everything = llm.generate("import", SamplingParams(logprobs=-1, max_tokens=1), use_tqdm=False)[0].outputs[0].logprobs[0]
tokenizer = llm.get_tokenizer()
"""
    found = run(script)
    output, completion = found["output"], found["output"].outputs[0]
    assert len(completion.logprobs) == 5
    for position, token_id, chosen in zip(completion.logprobs, completion.token_ids, found["chosen"], strict=True):
        assert position[token_id] is chosen, "the sampled token is the first entry"
        assert 3 <= len(position) <= 4
        assert chosen.decoded_token == found["tokenizer"].decode([token_id])
        others = [entry for entry in position.values() if entry is not chosen]
        assert all(chosen.rank > entry.rank for entry in others if entry.logprob > chosen.logprob)
    assert math.isclose(completion.cumulative_logprob, sum(entry.logprob for entry in found["chosen"]))
    assert output.prompt_logprobs[0] is None
    for position, token_id in zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True):
        assert next(iter(position)) == token_id
    assert len(found["everything"]) == 257
    assert math.isclose(sum(math.exp(entry.logprob) for entry in found["everything"].values()), 1, rel_tol=1e-5)


def test_token_ids_in_any_form(run: Run) -> None:
    script = """
from vllm import LLM, SamplingParams, TextPrompt, TokensPrompt
from vllm.inputs import TokensPrompt as Other
llm = LLM("demo")
params = SamplingParams(temperature=0, max_tokens=6)
ids = llm.get_tokenizer().encode("import ")
forms = [
    llm.generate("import ", params),
    llm.generate(["import "], params),
    llm.generate(TextPrompt(prompt="import "), params),
    llm.generate(ids, params),
    llm.generate([ids], params),
    llm.generate(TokensPrompt(prompt_token_ids=ids), params),
    llm.generate([Other(prompt_token_ids=ids, prompt="import ")], params),
    llm.generate(prompt_token_ids=ids, sampling_params=params),
    llm.generate(prompt_token_ids=[ids], sampling_params=params, use_tqdm=False),
    llm.generate(prompts=None, sampling_params=params, prompt_token_ids=[ids]),
    llm.generate("import ", {"temperature": 0, "max_tokens": 6}),
    llm.generate(["import "], [{"temperature": 0, "max_tokens": 6}]),
]
"""
    found = run(script)["forms"]
    assert [len(form) for form in found] == [1] * len(found)
    assert [form[0].outputs for form in found] == [found[0][0].outputs] * len(found)
    assert {tuple(form[0].prompt_token_ids) for form in found} == {tuple(run(script)["ids"])}


def test_parameters_that_a_script_changes_between_calls(run: Run) -> None:
    script = """
from vllm import LLM, SamplingParams
llm = LLM("demo")
params = SamplingParams(n=1, temperature=0, max_tokens=4)
first = llm.generate("import ", params)
params.n, params.max_tokens = 3, 2
params.stop = ["o"]
second = llm.generate("import ", params)
copy = params.clone()
params.bad_words = ["o"]
third = llm.generate("import ", params)
shared = [params, params]
results = llm.generate_iter(iter(["import ", "import "]), iter(shared))
key, output = next(results)
params.max_tokens = 9
rest = dict(results)
"""
    found = run(script)
    assert (len(found["first"][0].outputs), len(found["second"][0].outputs)) == (1, 3)
    assert len(found["first"][0].outputs[0].token_ids) == 4
    assert all(len(one.token_ids) <= 2 for one in found["second"][0].outputs)
    assert found["copy"].bad_words is None
    assert all("o" not in one.text for one in found["third"][0].outputs)
    assert len(found["output"].outputs[0].token_ids) <= 2


def test_methods_that_are_absent_say_what_there_is(run: Run) -> None:
    script = """
from vllm import LLM
llm = LLM("demo")
has_embed = hasattr(llm, "embed")
try:
    llm.beam_search([{"prompt": "a"}], None)
except AttributeError as error:
    message = str(error)
"""
    found = run(script)
    assert not found["has_embed"]
    assert found["message"] == (
        "LLM has no attribute 'beam_search', which vLLM's has: generate with `n` samples, and choose by "
        "`cumulative_logprob`"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ('llm.generate("a", lora_request=object())', "lora_request: got .*merge the adapter"),
        ('llm.generate("a", tokenization_kwargs={"truncation": True})', "tokenization_kwargs: got"),
        ('llm.generate("a", use_tdqm=False)', r"use_tdqm: LLM.generate has no such argument \(did you mean 'use_tqdm'"),
        (
            'llm.generate({"prompt": "a", "multi_modal_data": {"image": 1}})',
            "prompt 0: got .*: multi_modal_data cannot",
        ),
        ("llm.generate()", "prompts: got None, expected a list of prompts"),
        ('llm.generate(["a"], [{"max_tokens": -1}])', "sampling_params 0: SamplingParams.max_tokens: got -1"),
        ('llm.generate(["a"], {"max_token": 1})', r"max_token: .*\(did you mean 'max_tokens'\?\)"),
        ('llm.generate(["a"], {3: 4})', r"sampling_params: got the names \[3\], expected fields' names"),
        ('llm.chat([{"role": "user", "content": "a"}], lora_request=object())', "lora_request: got"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_served(run: Run, call: str, message: str) -> None:
    script = f"""
from vllm import LLM
llm = LLM("demo")
try:
    {call}
except ValueError as error:
    message = str(error)
steps = llm.stats().steps
"""
    found = run(script)
    assert re.search(message, found["message"], re.DOTALL)
    assert found["steps"] == 0
