"""The arguments of a harness's model: unknown names are refused with a guess, and a line says what was loaded."""

from __future__ import annotations

import pytest

from rwkv_batch.errors import CheckpointError, ConfigurationError
from rwkv_batch.integrations.model_arguments import adapter_arguments, check_arguments, load_model


class Adapter:
    def __init__(self, pretrained: str, *, max_length: int | None = None, **options: object) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "meant"), [("dtyp", "dtype"), ("max_lenght", "max_length"), ("tokeniser", "tokenizer")]
)
def test_an_unknown_argument_is_refused_with_what_was_meant(name, meant):
    with pytest.raises(ConfigurationError) as caught:
        load_model("no such file", {name: 1}, option="-M", own=adapter_arguments(Adapter))
    assert str(caught.value).startswith(f"-M: unknown argument {name!r} (did you mean {meant!r}?), expected one of ")


def test_an_argument_that_is_like_no_other_is_refused_with_all_names():
    with pytest.raises(ConfigurationError) as caught:
        check_arguments(["zzz"], option="--model_args", own=adapter_arguments(Adapter))
    message = str(caught.value)
    assert message.startswith("--model_args: unknown argument 'zzz', expected one of pretrained, max_length, model, ")
    assert "options" not in message and "state_dtype" in message


def test_known_arguments_of_both_are_taken():
    check_arguments(["max_length", "dtype", "batch_invariant"], option="-M", own=adapter_arguments(Adapter))


def test_arguments_of_vllm_are_left_to_the_model():
    check_arguments(["gpu_memory_utilization"], option="-M")
    with load_model("demo", {"device": "cpu", "max_num_seqs": 3, "tensor_parallel_size": 1}, option="-M") as llm:
        assert llm.summary.memory.max_batch_size == 3
    with pytest.raises(ConfigurationError, match="got 7, expected a number above 0"):
        load_model("demo", {"gpu_memory_utilization": 7}, option="-M")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_batch_size", "abc", "an integer or None"),
        ("max_batch_size", True, "an integer or None"),
        ("max_batch_tokens", 8.5, "an integer or None"),
        ("batch_invariant", "maybe", "True or False"),
        ("prefix_sharing", 1, "True or False"),
        ("prefix_host_gib", "1", "a number"),
        ("ln_x_eps", "small", "a number or None"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_before_the_model_loads(name, value, expected):
    with pytest.raises(ConfigurationError) as caught:
        load_model("no such file", {name: value}, option="-M")
    assert str(caught.value) == f"{name}: got {value!r}, expected {expected}"


def test_one_line_says_what_was_loaded(capfd):
    with load_model("demo", {"device": "cpu", "dtype": "float32", "max_batch_size": 3}, option="-M"):
        out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("rwkv_batch: demo, rwkv7 1.6M, cpu float32, 3 slots: loaded in ")
    assert line.endswith(" s; the harness now reads its tasks")


def test_errors_come_before_the_line(capfd):
    with pytest.raises(CheckpointError, match="no such file"):
        load_model("no such file.pth", {}, option="-M")
    with pytest.raises(ConfigurationError, match="tokenizer: got None, expected a tokenizer"):
        load_model("demo", {"tokenizer": None}, option="-M")
    assert capfd.readouterr() == ("", "")
