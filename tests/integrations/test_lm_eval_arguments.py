"""Arguments of the harness's model: what is refused, whose value wins, and that the harness finds the model."""

from __future__ import annotations

from typing import Any

import lm_eval
import pytest
from lm_eval.api.registry import get_model, model_registry

from integrations.small_model import VOCAB
from rwkv_batch import LLM
from rwkv_batch.errors import ConfigurationError
from rwkv_batch.integrations.lm_eval import RwkvBatchLM, register
from rwkv_batch.integrations.lm_eval_arguments import engine_options


def test_wrong_arguments_are_refused_by_name(checkpoint_file):
    path = str(checkpoint_file("7.0", vocab=VOCAB))
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"pretrained": path, "add_boss_token": True},
            r"'add_boss_token' \(did you mean 'add_bos_token'\?\)",
        ),
        ({"pretraind": path}, r"--model_args: unknown argument 'pretraind' \(did you mean 'pretrained'\?\)"),
        ({"pretrained": path, "rollin": "full"}, "model, .*rolling_length, .*think_end_token, .*tokenizer, .*dtype, "),
        ({"pretrained": path, "model": path}, "expected one of them"),
        ({}, r"expected one of them, as in pretrained=model\.pth$"),
        ({"pretrained": path, "rolling": "half"}, "'window', 'full' or 'chunks'"),
        ({"pretrained": path, "rolling": "full", "rolling_length": 8}, "expected None beside rolling=full"),
        ({"pretrained": path, "max_length": 1}, "expected an integer from 2, or None"),
        ({"pretrained": path, "max_length": "8k"}, "max_length: got '8k', expected an integer from 2, or None"),
        ({"pretrained": path, "rolling_length": True}, "rolling_length: got True, expected an integer"),
        ({"pretrained": path, "max_gen_toks": None}, "max_gen_toks: got None, expected an integer from 1$"),
        ({"pretrained": path, "add_bos_token": 1}, "expected True or False"),
        ({"pretrained": path, "prefix": 0}, "prefix: got 0, expected a text, or None"),
        ({"pretrained": path, "seed": 1.5}, "seed: got 1.5, expected an integer, or None"),
        ({"pretrained": path, "tokenizer": None}, "expected a tokenizer"),
    ]
    for arguments, message in cases:
        with pytest.raises(ConfigurationError, match=message):
            RwkvBatchLM(**arguments)
    with LLM(path, tokenizer="bytes") as llm, pytest.raises(ConfigurationError, match="dtype: a model that is loaded"):
        RwkvBatchLM(llm, dtype="float32")


def test_model_arguments_win_over_the_options_of_the_harness(checkpoint_file):
    path = checkpoint_file("7.0", vocab=VOCAB)
    harness = {"batch_size": 2, "max_batch_size": None, "device": "mps"}
    text = f"pretrained={path},tokenizer=bytes,device=cpu,max_batch_size=3"
    lm = RwkvBatchLM.create_from_arg_string(text, harness)
    assert (str(lm.device), lm.llm.summary.memory.max_batch_size) == ("cpu", 3)
    arguments = {"pretrained": path, "tokenizer": "bytes", "device": "cpu"}
    lm = RwkvBatchLM.create_from_arg_obj(arguments, harness)
    assert (str(lm.device), lm.llm.summary.memory.max_batch_size) == ("cpu", 2)
    assert arguments == {"pretrained": path, "tokenizer": "bytes", "device": "cpu"}


def test_the_default_device_of_the_harness_is_no_choice_without_cuda_and_beside_a_strategy(monkeypatch):
    def device(given: dict[str, Any]) -> str:
        return str(engine_options(given)["device"])

    for has_cuda in (False, True):
        monkeypatch.setattr("torch.cuda.is_available", lambda found=has_cuda: found)
        assert device({}) == device({"device": None}) == "auto"
        assert device({"device": "cuda:0", "strategy": "cuda fp16 *10+"}) == "auto"
        assert device({"device": "cpu", "strategy": "cpu fp32"}) == "cpu"  # the engine refuses one of the two
        assert device({"device": "cuda:0"}) == ("cuda:0" if has_cuda else "auto")
        assert device({"device": "cuda:1"}) == "cuda:1"  # the engine says what there is


def test_a_batch_size_is_a_number_of_slots():
    for given, expected in (
        ({"batch_size": 1}, None),
        ({"batch_size": 4}, 4),
        ({"batch_size": "auto:4"}, None),
        ({"batch_size": 4, "max_batch_size": 8}, 8),
    ):
        assert engine_options(given)["max_batch_size"] == expected


def test_the_option_about_the_code_of_data_sets_is_none_of_the_model(checkpoint_file):
    path = str(checkpoint_file("7.0", vocab=VOCAB))
    RwkvBatchLM.create_from_arg_obj({"pretrained": path, "tokenizer": "bytes", "trust_remote_code": True})


def test_the_harness_finds_the_model_by_its_name():
    register()
    register()
    assert get_model("rwkv_batch") is RwkvBatchLM
    assert "hf" in model_registry
    with pytest.raises(ConfigurationError, match="unknown argument 'dtpye'"):
        lm_eval.simple_evaluate(model="rwkv_batch", model_args={"pretrained": "demo", "dtpye": "float32"}, tasks=["x"])


def test_results_name_the_dtypes_formats_and_devices_of_all_layers(checkpoint_file):
    path = str(checkpoint_file("7.0", vocab=VOCAB))
    cases: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
        ({"device": "cpu", "dtype": "float32"}, ("float32", "cpu", None)),
        ({"strategy": "cpu fp32 *1 -> cpu bf16"}, ("float32, bfloat16", "cpu", None)),
        ({"strategy": "cpu fp32i8 *1 -> cpu fp32"}, ("float32", "cpu", "int8, none")),
    ]
    for settings, expected in cases:
        lm = RwkvBatchLM(path, tokenizer="bytes", **settings)
        info = lm.get_model_info()
        assert (info["model_dtype"], info["model_device"], info["quantization"]) == expected
        assert info["layers"] == lm.llm.describe()["layers"]
