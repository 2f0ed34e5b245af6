"""Batch inference for RWKV language models: thousands of sequences at once, Parquet in, Parquet out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .llm import LLM
    from .outputs import CompletionOutput, Logprob, RequestOutput, ScoreOutput
    from .sampling_params import SamplingParams

__version__ = "0.1.0"

_HOME = {
    "LLM": "llm",
    "SamplingParams": "sampling_params",
    "CompletionOutput": "outputs",
    "Logprob": "outputs",
    "RequestOutput": "outputs",
    "ScoreOutput": "outputs",
}

__all__ = ["LLM", "CompletionOutput", "Logprob", "RequestOutput", "SamplingParams", "ScoreOutput", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import rwkv_batch` stays free of torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'rwkv_batch' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)
