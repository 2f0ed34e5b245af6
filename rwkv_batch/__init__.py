"""Batch inference for RWKV language models: thousands of sequences at once.

`LLM` completes and scores prompts in Python, with `SamplingParams`. `run_job` runs a job file: prompts in, Parquet out.
On the command line: rwkv-batch --help.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import (
        BackendError,
        CapacityError,
        CheckpointError,
        ConfigurationError,
        MissingExtraError,
        ResumeError,
        RwkvBatchError,
        Stopped,
    )
    from .inputs import TextPrompt, TokensPrompt
    from .job.execute import run_job
    from .job.shard_run import Outcome
    from .llm import LLM
    from .outputs import CompletionOutput, Logprob, RequestOutput, ScoreOutput
    from .sampling_params import SamplingParams
    from .structured_outputs import StructuredOutputsParams
    from .text.chat import ChatSettings

__version__ = "0.1.0"

_HOME = {
    "LLM": "llm",
    "SamplingParams": "sampling_params",
    "ChatSettings": "text.chat",
    "CompletionOutput": "outputs",
    "Logprob": "outputs",
    "RequestOutput": "outputs",
    "ScoreOutput": "outputs",
    "StructuredOutputsParams": "structured_outputs",
    "TextPrompt": "inputs",
    "TokensPrompt": "inputs",
    "run_job": "job.execute",
    "Outcome": "job.shard_run",
    "RwkvBatchError": "errors",
    "ConfigurationError": "errors",
    "CheckpointError": "errors",
    "CapacityError": "errors",
    "BackendError": "errors",
    "MissingExtraError": "errors",
    "ResumeError": "errors",
    "Stopped": "errors",
}

__all__ = [
    "LLM",
    "BackendError",
    "CapacityError",
    "ChatSettings",
    "CheckpointError",
    "CompletionOutput",
    "ConfigurationError",
    "Logprob",
    "MissingExtraError",
    "Outcome",
    "RequestOutput",
    "ResumeError",
    "RwkvBatchError",
    "SamplingParams",
    "ScoreOutput",
    "Stopped",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "__version__",
    "run_job",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import rwkv_batch` does not import torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'rwkv_batch' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
