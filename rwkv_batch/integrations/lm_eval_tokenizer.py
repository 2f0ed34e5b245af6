"""The model's tokenizer for tasks of the lm-evaluation-harness that load one by name, such as RULER's and BABILong's.

These tasks call `transformers.AutoTokenizer.from_pretrained` with a value of the model arguments (`tokenizer`,
`pretrained` or `model`). For an RWKV checkpoint transformers finds no tokenizer under such a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..text.hf_tokenizer import HfTokenizer

_offered: dict[str, HfTokenizer] = {}
"""Name → the tokenizer that `AutoTokenizer.from_pretrained` gives for it."""
_others: Callable[..., Any] | None = None
"""What `AutoTokenizer.from_pretrained` was before, which serves all other names."""


def offer_tokenizer(tokenizer: HfTokenizer, names: Iterable[str]) -> None:
    """Lets `AutoTokenizer.from_pretrained` give this tokenizer for some names; other names are not affected.

    Nothing happens without the package transformers, which those tasks need.

    Args:
        names: what the user calls the model and its tokenizer. A name that was offered before gets the new tokenizer.
    """
    global _others
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return
    _offered.update(dict.fromkeys(names, tokenizer))
    if AutoTokenizer.from_pretrained is not _from_pretrained:
        _others = AutoTokenizer.from_pretrained
        AutoTokenizer.from_pretrained = _from_pretrained


def _from_pretrained(name: Any, *arguments: Any, **options: Any) -> Any:
    found = _offered.get(str(name))
    if found is not None:
        return found
    assert _others is not None
    return _others(name, *arguments, **options)
