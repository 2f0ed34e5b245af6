"""Triton's interpreter with its language replaced once, in place of anew at every call of a function in a kernel."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

NOTHING = SimpleNamespace(restore=lambda: None)


def replace_language_once() -> None:
    """Replaces the language for the rest of the process. Does nothing where the interpreter is not imported.

    The interpreter replaces the language at each call of a function, for as long as the call lasts. That takes longer
    than most functions of kernels.
    """
    interpreter: Any = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None or interpreter._patch_lang is _replaced:
        return
    from triton import language

    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": language, "core": language.core}))
    interpreter._patch_lang = _replaced


def _replaced(function: Any) -> SimpleNamespace:
    return NOTHING
