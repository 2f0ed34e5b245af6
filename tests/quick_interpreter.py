"""Triton's interpreter with its language replaced once, in place of anew at every call of a function in a kernel."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

NOTHING = SimpleNamespace(restore=lambda: None)


def replace_language_once() -> None:
    """Does it if this process has imported the interpreter. A launch replaces the language for as long as it runs;
    with this, the language stays replaced. A replacement takes longer than most functions of kernels.
    """
    interpreter: Any = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None or interpreter._patch_lang is _replaced:
        return
    from triton import language

    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": language, "core": language.core}))
    interpreter._patch_lang = _replaced


def _replaced(function: Any) -> SimpleNamespace:
    return NOTHING
