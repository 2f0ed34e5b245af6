"""The progress bar of `LLM.generate`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .outputs import RequestOutput

UseTqdm = bool | Callable[..., Any] | None
"""None: a bar on a terminal and in a notebook. True: always a bar. False: no bar. A function: makes the bar, and is
called as tqdm is."""


def shown(
    results: Iterable[tuple[int, RequestOutput]], total: int, use_tqdm: UseTqdm
) -> Iterator[tuple[int, RequestOutput]]:
    """Yields results, and shows how many there were, and tokens per second of prompts and completions.

    Args:
        results: (index, result) of each prompt.
        total: the number of prompts.
        use_tqdm: whether there is a bar; see `UseTqdm`.
    """
    if not (_is_seen() if use_tqdm is None else use_tqdm):
        yield from results
        return
    from tqdm.auto import tqdm

    make = use_tqdm if callable(use_tqdm) else tqdm
    started, tokens_in, tokens_out = time.perf_counter(), 0, 0
    bar = make(total=total, desc="Processed prompts", dynamic_ncols=True, postfix=_speed(0, 0))
    try:
        for index, output in results:
            yield index, output
            tokens_in += len(output.prompt_token_ids)
            tokens_out += sum(len(one.token_ids) for one in output.outputs)
            elapsed = max(time.perf_counter() - started, 1e-9)
            bar.postfix = _speed(tokens_in / elapsed, tokens_out / elapsed)
            bar.update(1)
    finally:
        bar.close()


def _speed(tokens_in: float, tokens_out: float) -> str:
    return f"input: {tokens_in:.1f} tokens/s, output: {tokens_out:.1f} tokens/s"


def _is_seen() -> bool:
    """Whether standard error is a terminal, or this is a notebook."""
    if sys.stderr is not None and sys.stderr.isatty():
        return True
    shell = sys.modules.get("IPython")
    return shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None
