"""The model's tokenizer for tasks of the lm-evaluation-harness that load one by name, such as RULER's and BABILong's.

These tasks call `transformers.AutoTokenizer.from_pretrained` with a value of the model arguments (`tokenizer`,
`pretrained` or `model`). For an RWKV checkpoint transformers finds no tokenizer under such a name.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from ..text.hf_tokenizer import HfTokenizer

_offered: dict[str, HfTokenizer] = {}
"""Name → the tokenizer that `AutoTokenizer.from_pretrained` gives for it."""


def offer_tokenizer(tokenizer: HfTokenizer, names: Iterable[str]) -> None:
    """Lets `AutoTokenizer.from_pretrained` give this tokenizer for some names; other names are not affected.

    Nothing happens without the package transformers, which those tasks need.

    Args:
        names: what the user calls the model and its tokenizer. A name that was offered before gets the new tokenizer.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return
    _offered.update(dict.fromkeys(names, tokenizer))
    from_pretrained = AutoTokenizer.from_pretrained
    if getattr(from_pretrained, "offered", None) is _offered:
        return

    @functools.wraps(from_pretrained)
    def with_offered(name: Any, *arguments: Any, **options: Any) -> Any:
        found = _offered.get(str(name))
        return from_pretrained(name, *arguments, **options) if found is None else found

    with_offered.offered = _offered  # type: ignore[attr-defined] - a mark
    AutoTokenizer.from_pretrained = with_offered
