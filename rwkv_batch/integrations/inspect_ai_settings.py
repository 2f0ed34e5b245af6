"""Inspect's settings of a request as sampling parameters. Each setting is followed, or refused by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import did_you_mean
from ..sampling_params import SamplingParams

if TYPE_CHECKING:
    from inspect_ai.model import GenerateConfig

MAX_TOKENS = 2048
"""Limit of a completion if the task sets none."""
SAME_NAME = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "logit_bias", "seed")
"""Settings that `SamplingParams` has under the same name."""
TRANSLATED = (
    "max_tokens",
    "stop_seqs",
    "num_choices",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "response_schema",
    "extra_body",
)
OF_INSPECT = (
    "max_retries",
    "timeout",
    "attempt_timeout",
    "stream_idle_timeout",
    "max_connections",
    "adaptive_connections",
    "system_message",
    "max_tool_output",
    "parallel_tool_calls",
    "internal_tools",
    "cache_prompt",
    "cache",
    "batch",
    "fail_on_refusal",
    "reasoning_history",
)
"""Settings that Inspect itself follows, or that change nothing here: there are no tools, and no server."""
TEMPLATE_NAMES = "chat_template_kwargs"
"""The name in `extra_body` of further names for a chat template."""
_IN_EXTRA_BODY = {"n": "num_choices", "stop_seqs": "stop_seqs", **{name: name for name in (*SAME_NAME, *TRANSLATED)}}
"""Name that `extra_body` must not have → Inspect's setting for it."""


def sampling_params(
    config: GenerateConfig, stop: Sequence[str] = (), stop_token_ids: Sequence[int] = ()
) -> SamplingParams:
    """The sampling parameters that Inspect's settings ask for.

    Args:
        stop, stop_token_ids: what ends the model's turn in the chat format. `stop` in `extra_body` replaces both.

    Raises:
        ValueError: a setting is out of range, or is one that this model cannot follow.
    """
    refuse_others(config)
    extra = dict(config.extra_body or {})
    extra.pop(TEMPLATE_NAMES, None)
    given = {name: getattr(config, name) for name in SAME_NAME if getattr(config, name) is not None}
    if config.response_schema is not None:
        given["json_schema"] = config.response_schema.json_schema.model_dump(exclude_none=True)
    if "stop" not in extra:
        own = [text for text in config.stop_seqs or () if text]
        extra["stop"] = [*stop, *own]
        extra["stop_token_ids"] = [*stop_token_ids, *(extra.get("stop_token_ids") or ())] or None
    return SamplingParams(
        n=config.num_choices or 1,
        max_tokens=config.max_tokens or MAX_TOKENS,
        logprobs=(config.top_logprobs or 0) if config.logprobs else None,
        prompt_logprobs=config.prompt_logprobs,
        **given,
        **extra,
    )


def template_names(config: GenerateConfig) -> Mapping[str, Any]:
    """Further names for a chat template, such as `enable_thinking`: `chat_template_kwargs` of `extra_body`."""
    found = (config.extra_body or {}).get(TEMPLATE_NAMES) or {}
    if not isinstance(found, Mapping):
        raise ValueError(f"extra_body.{TEMPLATE_NAMES}: got {found!r}, expected a mapping of names")
    return found


def refuse_others(config: GenerateConfig) -> None:
    """Raises ValueError for the first setting that this model cannot follow."""
    known = {*SAME_NAME, *TRANSLATED, *OF_INSPECT}
    for name in type(config).model_fields:
        if name not in known and getattr(config, name) is not None:
            raise ValueError(f"{name}: got {getattr(config, name)!r}, expected none: this model has no such setting")
    if config.top_logprobs is not None and not config.logprobs:
        raise ValueError(f"top_logprobs: got {config.top_logprobs} without logprobs, expected logprobs=True beside it")
    names = [name for name in SamplingParams.field_names() if name not in _IN_EXTRA_BODY] + [TEMPLATE_NAMES]
    for name in config.extra_body or ():
        if name in _IN_EXTRA_BODY:
            raise ValueError(f"extra_body.{name}: expected Inspect's own setting {_IN_EXTRA_BODY[name]} in its place")
        if name not in names:
            raise ValueError(
                f"extra_body.{name}: unknown setting{did_you_mean(name, names)}, expected one of {', '.join(names)}"
            )
    if "json_schema" in (config.extra_body or {}) and config.response_schema is not None:
        raise ValueError("extra_body.json_schema: expected none beside response_schema")
