"""Thoughts of a model at the end of a prompt, and prompts of completions that follow a constraint."""

from __future__ import annotations

import re

from ..errors import RowError
from ..sampling_params import CONSTRAINTS, SamplingParams

_THOUGHT_OF_PROMPT = re.compile(r"<think(>\s*(</think>?\s*)?)?\Z")
"""The thought that a chat format has begun, or closed, at the end of its prompt."""


def begun_thought(prompt: str) -> str:
    """The thought that a prompt has begun for the model, from `<think` on; "" where it has begun none."""
    found = _THOUGHT_OF_PROMPT.search(prompt)
    return found[0] if found is not None else ""


def constraint_of(params: SamplingParams) -> str | None:
    """The name of the field that constrains the text: "json_schema", "regex" or "grammar"; None where none does."""
    return next((name for name in CONSTRAINTS if getattr(params, name) is not None), None)


def no_thought(constraint: str) -> str:
    """Why a completion with a constraint has no thought: a sentence for an error."""
    return (
        f"got an open thought beside {constraint}, which holds for the whole completion, from its first character on; "
        "expected think 'none' or 'fake'"
    )


def constrained_prompt(prompt: str, params: SamplingParams) -> str:
    """The prompt from a conversation, as it is completed with these parameters.

    The last `>` of a thought that the prompt has closed is left to the model. A constraint would forbid it, so that it
    is added here.

    Raises:
        RowError: code "bad_sampling": the prompt has begun a thought, which the constraint forbids.
    """
    constraint = constraint_of(params)
    if constraint is None:
        return prompt
    begun = begun_thought(prompt)
    if begun and "</think" not in begun:
        raise RowError("bad_sampling", f"think: {no_thought(constraint)}")
    return f"{prompt}>" if begun.endswith("</think") else prompt
