"""The arguments of a harness's model, and the line that says that it is loaded. All adapters use these functions."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from inspect import Parameter, signature
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, did_you_mean
from ..vllm_arguments import LLM_ARGUMENTS

if TYPE_CHECKING:
    from ..llm import LLM

NAME = "rwkv_batch"


def load_model(
    model: str | Path,
    options: Mapping[str, Any],
    *,
    option: str,
    own: Iterable[str] = (),
    then: str = "the harness now reads its tasks",
) -> LLM:
    """Loads the model of a harness, and prints a line that says what was loaded and that the harness goes on.

    Args:
        model: the `model` argument of `LLM`.
        options: other arguments of `LLM`, as the user gave them.
        option: where the harness takes these arguments, such as "--model_args"; the errors begin with it.
        own: names of the adapter's own arguments, which the user may have meant.
        then: what follows, for the line.

    Raises:
        ConfigurationError: an argument is unknown or wrong, or there is no tokenizer: a harness's requests are text.
        CheckpointError, CapacityError, BackendError: as `LLM` does.
    """
    check_arguments(options, option=option, own=own)
    from ..llm import LLM

    start = perf_counter()
    llm = LLM(model, **options)
    check_tokenizer(llm)
    report(f"{llm.summary}: loaded in {perf_counter() - start:.1f} s; {then}")
    return llm


def check_arguments(given: Iterable[str], *, option: str, own: Iterable[str] = ()) -> None:
    """Raises ConfigurationError for the first name that is neither an argument of `LLM` nor one of `own`.

    An argument of vLLM is left to `LLM`, which translates it, warns of it, or refuses it.

    Args:
        given: names of the arguments that the user gave.
        option, own: as those of `load_model`.
    """
    from ..llm import LLM

    parameters = signature(LLM).parameters.values()
    named = (parameter.name for parameter in parameters if parameter.kind is not Parameter.VAR_KEYWORD)
    known = list(dict.fromkeys([*own, *named]))
    for name in given:
        if name not in known and name not in LLM_ARGUMENTS:
            raise ConfigurationError(
                f"{option}: unknown argument {name!r}{did_you_mean(name, known)}, expected one of {', '.join(known)}"
            )


def check_tokenizer(llm: LLM) -> None:
    """Raises ConfigurationError for a model without a tokenizer."""
    if llm.tokenizer is None:
        raise ConfigurationError("tokenizer: got None, expected a tokenizer: the harness's requests are text")


def adapter_arguments(adapter: type) -> list[str]:
    """The names of an adapter's own arguments: the named parameters of its constructor."""
    kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in signature(adapter).parameters.values() if parameter.kind in kinds]


def report(sentence: str) -> None:
    """Prints a line of progress to the standard error, at once. The logging of a harness may hide a log line."""
    print(f"{NAME}: {sentence}", file=sys.stderr, flush=True)
