"""What `LLM` does with the results of a call: it numbers them, and warns of errors."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

from .outputs import RequestOutput

logger = logging.getLogger(__name__)


class RequestNumbers:
    """Gives results a `request_id` each: "0", "1", ..., in the order of the prompts of all calls."""

    def __init__(self) -> None:
        self._next = 0

    def given_to(self, results: Iterable[tuple[int, RequestOutput]]) -> Iterator[tuple[int, RequestOutput]]:
        """Yields (index, result) of a call. The call must be the only one from its first result to its end."""
        first = None
        for index, output in results:
            if first is None:
                first = self._next
            output.request_id = str(first + index)
            self._next = max(self._next, first + index + 1)
            yield index, output


def warn_of_errors(name: str, errors: Sequence[str | None]) -> None:
    """Logs how many results of a call are errors, with the first one.

    Args:
        name: what a result is of: "prompt" or "pair".
        errors: of each result; None where there is none.
    """
    wrong = [index for index, error in enumerate(errors) if error is not None]
    if wrong:
        logger.warning(
            "%d of %d results are errors; the first one is of %s %d: %s",
            len(wrong),
            len(errors),
            name,
            wrong[0],
            errors[wrong[0]],
        )
