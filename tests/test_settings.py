"""The settings stand in three places, `LLM`, settings.py and a job's sections, and say the same."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from rwkv_batch import LLM
from rwkv_batch.dtypes import DTYPES, SPELLINGS, STATE_DTYPES, dtype_name, torch_dtype
from rwkv_batch.errors import CapacityError, ConfigurationError
from rwkv_batch.job.config import ChatSection, EngineSection, ModelSection
from rwkv_batch.job.section import Section
from rwkv_batch.model_summary import _in_words, inspect_model
from rwkv_batch.models.matrices.quantization import QUANTIZATIONS
from rwkv_batch.ops import BACKENDS
from rwkv_batch.sampling_fields import documented_arguments
from rwkv_batch.settings import LOGPROBS_MODES, EngineSettings, ModelSettings
from rwkv_batch.text.chat import ChatSettings, format_names
from rwkv_batch.text.chat_formats import THOUGHTS

CALLED_OTHERWISE = {"path": "model"}
"""Setting of a job → argument of `LLM`, where the names differ."""
OF_JOBS_ONLY = {"sha256"}
OF_CALLS_ONLY = {"seed", "chat", "data_parallel"}
"""Arguments of `LLM` alone. In a job the seed is `sampling.seed`, `chat` is a section, and a job has one engine."""
TAKES_MORE = {
    "device": "str | torch.device",
    "dtype": "str | torch.dtype",
    "seed": "int | None",
}
"""Argument of `LLM` whose values are more than those of the setting → its annotation."""
ON_PURPOSE = {
    "batch_invariant": (True, False),
    **dict.fromkeys(("max_batch_size", "max_batch_tokens"), ("auto", None)),
}
"""Setting → its default in a job and in `LLM`, where they differ."""


def test_the_signature_of_LLM_has_all_settings_with_their_defaults() -> None:
    *parameters, others = inspect.signature(LLM).parameters.values()
    settings = {
        field.name: (field.default, TAKES_MORE.get(field.name, field.type))
        for group in (ModelSettings, EngineSettings)
        for field in fields(group)
    }
    assert {one.name: (one.default, one.annotation) for one in parameters} == settings
    assert list(documented_arguments(LLM)) == [one.name for one in (*parameters, others)]


@pytest.mark.parametrize(
    ("section", "group"),
    [(ModelSection, ModelSettings), (EngineSection, EngineSettings), (ChatSection, ChatSettings)],
)
def test_a_job_s_section_has_the_settings_of_the_library(section: type[Section], group: type[Any]) -> None:
    of_job = {CALLED_OTHERWISE.get(name, name): field for name, field in section.model_fields.items()}
    of_library = {field.name: field.default for field in fields(group)}
    assert of_job.keys() - OF_JOBS_ONLY == of_library.keys() - OF_CALLS_ONLY
    for name in of_library.keys() - OF_CALLS_ONLY:
        if not of_job[name].is_required():
            assert (of_job[name].default, of_library[name]) == ON_PURPOSE.get(name, (of_library[name],) * 2), name


@pytest.mark.parametrize(
    ("group", "setting", "value"),
    [
        (ModelSettings, "ln_x_eps", 1.0),
        (EngineSettings, "prefix_host_gib", float("inf")),
        (EngineSettings, "constraint_timeout", 0),
        (EngineSettings, "memory_share", 0),
        (EngineSettings, "memory_share", 1.01),
        (EngineSettings, "memory_share", float("nan")),
        (EngineSettings, "memory_share", None),
        (EngineSettings, "memory_share", True),
    ],
)
def test_a_number_out_of_range_is_refused(group: type[Any], setting: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{setting}: got {value}, expected a number"):
        group(**{setting: value})


@pytest.mark.parametrize("value", ["auto", "30", None, True, -1, float("nan"), float("inf")])
def test_a_delay_that_is_no_number_of_milliseconds_is_refused(value: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=f"^admission_delay_ms: got {value!r}, expected a number of milliseconds"
    ):
        EngineSettings(admission_delay_ms=value)


def test_a_share_may_be_a_number_of_numpy() -> None:
    assert EngineSettings(memory_share=np.float32(0.5)).memory_share == 0.5


def test_the_share_of_memory_is_the_plan_s() -> None:
    with pytest.raises(CapacityError, match=r"of which 0% may be used \(memory_share\)"):
        inspect_model(ModelSettings(), EngineSettings(device="cpu", memory_share=1e-6))


def test_another_mode_of_log_probabilities_is_refused() -> None:
    expected = "^logprobs_mode: got 'raw_logits', expected raw_logprobs or processed_logprobs"
    with pytest.raises(ConfigurationError, match=expected):
        EngineSettings(logprobs_mode="raw_logits")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("logprobs_mode", LOGPROBS_MODES),
        ("dtype", DTYPES),
        ("state_dtype", STATE_DTYPES),
        ("quantization", QUANTIZATIONS),
        ("backend", BACKENDS),
    ],
)
def test_the_docstring_of_LLM_names_every_choice(setting: str, names: tuple[str, ...]) -> None:
    text = documented_arguments(LLM)[setting]
    assert [name for name in names if f'"{name}"' not in text] == []


@pytest.mark.parametrize(("setting", "names"), [("format", format_names()), ("think", list(THOUGHTS))])
def test_the_docstring_of_ChatSettings_names_every_choice(setting: str, names: list[str]) -> None:
    text = documented_arguments(ChatSettings)[setting]
    assert [name for name in names if f'"{name}"' not in text] == []


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_a_dtype_has_a_name_and_a_name_a_dtype(name: str, dtype: torch.dtype) -> None:
    assert torch_dtype(name) is dtype
    assert SPELLINGS[name] == dtype_name(dtype)


def test_a_summary_in_words_names_layers_that_differ() -> None:
    summary = inspect_model(ModelSettings(strategy="cpu fp32 *1 -> cpu fp32i8"), EngineSettings(max_batch_size=4))
    assert str(summary) == "demo, rwkv7 1.6M, layer 0 cpu float32, layers 1-2 and head cpu float32 int8, 4 slots"


@pytest.mark.parametrize(("count", "words"), [(191_084_544, "191.1M"), (1_527_404_544, "1.5B")])
def test_a_number_of_weights_in_words(count: int, words: str) -> None:
    assert _in_words(count) == words
