"""The sizes for which steps are recorded. A step runs at the next larger size; what is added is padding."""

from __future__ import annotations

from bisect import bisect_left
from itertools import chain, count, takewhile
from typing import NamedTuple

TOP_COUNTS = (5, 20)
"""The numbers of most likely tokens for which steps are recorded. A step for more tokens is not recorded."""
_FEW = 8
"""Steps with prompt chunks are recorded for all slots, and for one of so many."""


class StepSize(NamedTuple):
    """The size of a recorded step."""

    num_sequences: int
    num_tokens: int
    has_prompts: bool
    """False: every sequence decodes, so that there are as many tokens as sequences."""

    @property
    def num_rows(self) -> int:
        """Rows of the forward pass. With prompt chunks one row more, the last one, has all tokens of the padding."""
        return self.num_sequences + self.has_prompts


class RecordedSizes:
    """The sizes for which the steps of an engine are recorded.

    Decode steps: powers of two, above 64 also the sizes halfway, and all slots. Steps with prompt chunks: for an eighth
    of the slots and for all slots; beside one token for each of these, multiples of 64 tokens up to 256, from there on
    four sizes for each doubling, and the tokens of a full step. The tokens beside those are thus filled up with fewer
    than 64, or with fewer than a quarter of them. Sequences that are missing count one token each. That is cheap for
    up to some hundred tokens, because a step of few tokens takes as long as reading the weights.

    Args:
        num_slots: P, at least 1.
        max_tokens: of a step, at least P.

    Attributes:
        steps: of forward passes, the largest first.
        draws: numbers of sequences for which draws are recorded, ascending.
        tops: numbers of rows for which the most likely tokens are recorded, ascending: powers of four from 16 on.
    """

    def __init__(self, num_slots: int, max_tokens: int) -> None:
        self._decoding = decode_sizes(num_slots)
        self._tokens = {
            sequences: [*(sequences + n for n in _prompt_tokens(max_tokens - sequences)), max_tokens]
            for sequences in sorted({max(num_slots // _FEW, 1), num_slots})
        }
        mixed = [StepSize(rows, tokens, True) for rows, sizes in self._tokens.items() for tokens in sizes]
        decoding = [StepSize(rows, rows, False) for rows in self._decoding]
        self.steps = sorted(chain(mixed, decoding), key=lambda size: -size.num_tokens)
        self.draws = sorted({*self._decoding, *self._tokens})
        self.tops = [*takewhile(lambda size: size < num_slots, (4**i for i in count(2))), num_slots]

    def step(self, num_sequences: int, num_tokens: int, has_prompts: bool) -> StepSize:
        """The size at which a step runs."""
        if not has_prompts:
            rows = at_least(self._decoding, num_sequences)
            return StepSize(rows, rows, False)
        rows = at_least([*self._tokens], num_sequences)
        return StepSize(rows, at_least(self._tokens[rows], num_tokens), True)

    def __len__(self) -> int:
        """The number of recordings."""
        return len(self.steps) + len(self.draws) + len(self.tops) * len(TOP_COUNTS)


def decode_sizes(most: int) -> list[int]:
    """The numbers of sequences for which decode steps are recorded."""
    sizes = sorted({2**i for i in range(most.bit_length())} | {3 * 2**i for i in range(5, most.bit_length())})
    return [*takewhile(lambda size: size < most, sizes), most]


def at_least(sizes: list[int] | tuple[int, ...], number: int) -> int:
    """The smallest of the ascending sizes that is not below `number`."""
    return sizes[bisect_left(sizes, number)]


def _prompt_tokens(most: int) -> list[int]:
    """Multiples of 64 up to 256, and four sizes for each doubling above, all below `most`."""
    steps = (2**i + quarter * 2**i // 4 for i in count(8) for quarter in range(4))
    return [*takewhile(lambda size: size < most, chain((64, 128, 192), steps))]
