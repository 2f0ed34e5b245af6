"""Variants of one model that are measured together: dtypes, weight formats, batch invariance."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from ..dtypes import DTYPES
from ..errors import one_of

_INVARIANT = "invariant"
_HALF_STATE = "half-state"


@dataclass(frozen=True)
class Variant:
    """Settings of `LLM` that change a model's speed, memory and rounding.

    As a text, a variant is words with a plus between them, the dtype first: "float32", "bfloat16+int8",
    "bfloat16+invariant". "half-state" is float16 states; any other word is a `quantization`.
    """

    dtype: str = "auto"
    quantization: str | None = None
    batch_invariant: bool = False
    state_dtype: str = "float32"

    @classmethod
    def parse(cls, text: str) -> Variant:
        """The variant of a text. Names of quantizations are checked later, by `LLM`.

        Raises:
            argparse.ArgumentTypeError: the text is not a variant.
        """
        dtype, *words = text.split("+")
        quantizations = [word for word in words if word not in (_INVARIANT, _HALF_STATE)]
        if dtype not in ("auto", *DTYPES) or len(set(words)) < len(words) or len(quantizations) > 1 or "" in words:
            raise argparse.ArgumentTypeError(
                f"got {text!r}, expected {one_of(('auto', *DTYPES))}, then, each after a plus, "
                f"a quantization, {_INVARIANT}, {_HALF_STATE}: such as bfloat16+int8"
            )
        return cls(
            dtype,
            quantizations[0] if quantizations else None,
            _INVARIANT in words,
            "float16" if _HALF_STATE in words else "float32",
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The variant as arguments of `LLM`."""
        return {
            "dtype": self.dtype,
            "quantization": self.quantization,
            "batch_invariant": self.batch_invariant,
            "state_dtype": self.state_dtype,
        }

    def __str__(self) -> str:
        half_state = _HALF_STATE if self.state_dtype == "float16" else None
        words = [self.dtype, self.quantization, _INVARIANT if self.batch_invariant else None, half_state]
        return "+".join(word for word in words if word)


def variants(text: str) -> list[Variant]:
    """The value of an argument such as "float32,bfloat16+int8", without duplicates."""
    return list(dict.fromkeys(Variant.parse(word) for word in text.split(",")))
