"""Checks of the ops on logits: sampling, over steps in which the tables change, and the most likely tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.logprobs import top_tokens as top_tokens_definition
from ..engine.request import Request
from ..engine.sample import sample as sample_definition
from ..engine.sampler import Sampler
from ..engine.selection import select as select_definition
from ..engine.slot_tables import Vocabulary
from ..models.scoring import log_normalizer as log_normalizer_definition
from ..ops import OpTable
from ..sampling_params import SamplingParams
from .comparisons import Checks, poisoned
from .limits import NORMALIZER_ERROR, OTHER_DRAWS
from .target import CPU, Target

SETTINGS = {
    "greedy": SamplingParams(temperature=0.0),
    "temperature": SamplingParams(temperature=1.3),
    "top-p": SamplingParams(top_p=0.85),
    "top-p, ChatRWKV's order": SamplingParams(temperature=0.7, top_p=0.6, top_p_order="rwkv"),
    "top-k": SamplingParams(top_k=40),
    "min-p": SamplingParams(min_p=0.02),
    "all filters": SamplingParams(temperature=1.5, top_p=0.9, top_k=100, min_p=0.001),
    "penalties": SamplingParams(
        top_p=0.9, presence_penalty=0.5, frequency_penalty=0.3, repetition_penalty=1.2, penalty_decay=0.97
    ),
    "biases and bans": SamplingParams(top_p=0.9, logit_bias={5: 3.0, 7: -4.0}, bad_token_ids=[3, 11]),
    "early stops": SamplingParams(temperature=1.0, min_tokens=4, stop_token_ids=[1, 2]),
    "allowed ids": SamplingParams(allowed_token_ids=[4, 9, 17, 23, 42, 64]),
}
_DEFINITIONS: dict[str, Callable[..., Any]] = {
    "sample": sample_definition,
    "log_normalizer": log_normalizer_definition,
    "select": select_definition,
}


class Drawer:
    """A sampler whose slots all have a request.

    Args:
        size: of the vocabulary.
        params: of the slots, in turn.
        count: number of slots.
        own: the op, "sample" or "select", that the target serves; definitions serve the others.
    """

    def __init__(
        self, target: Target, size: int, params: Sequence[SamplingParams], count: int, own: str | None = None
    ) -> None:
        self.size, self.device = size, target.device
        served = {own: target.op(own, torch.float32, V=size)} if own else {}
        self.sampler = Sampler(count, Vocabulary.plain(size), target.device, OpTable.of(**_DEFINITIONS | served))
        requests = [
            Request(slot, [1 + slot % 50, 7, 9], params[slot % len(params)], seed=3, row=slot) for slot in range(count)
        ]
        self.sampler.assign(range(count), requests)

    def draw(self, logits: Tensor, slot_index: Tensor) -> tuple[Tensor, Tensor]:
        self.sampler.reserve(slot_index[slot_index >= 0].cpu().numpy())
        return self.sampler.draw(logits, slot_index)


def draw_logits(target: Target, rows: int, size: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return (3 * torch.randn(rows, size, generator=generator)).to(target.device)


def check_sample(
    target: Target,
    size: int,
    params: Sequence[SamplingParams],
    count: int,
    steps: int,
    own: str = "sample",
) -> Checks:
    """Compares draws, log-probabilities and tables with the definition's on the host, over some steps.

    The logits must be unchanged after each step.

    Args:
        size, params, count, own: as for `Drawer`.
    """
    checks = Checks()
    ours, right = Drawer(target, size, params, count, own), Drawer(Target("reference", CPU), size, params, count)
    slots = _slots(count)
    live = slots >= 0
    is_greedy = torch.tensor([params[slot % len(params)].temperature == 0 for slot in slots.tolist()]) & live
    num_others, num_other_greedy, worst, changed = 0, 0, 0.0, 0
    for step in range(steps):
        logits = draw_logits(target, len(slots), size, step)
        given = logits.clone()
        with poisoned():
            token_ids, logprobs = (part.cpu() for part in ours.draw(given, slots.to(target.device)))
        changed += int((given != logits).cpu()[live].sum())
        want_ids, want_logprobs = right.draw(logits.cpu(), slots)
        same = (token_ids == want_ids) & live
        num_others += int((~same & live & ~is_greedy).sum())
        num_other_greedy += int((~same & is_greedy).sum())
        errors = (logprobs - want_logprobs)[same].abs().nan_to_num(nan=torch.inf)
        worst = max([worst, *errors.tolist()])
        _compare_tables(checks, f"V={size}, step {step}", ours, right, slots[same].long())
        _align(ours, right)
    checks.at_most(f"V={size}, other greedy draws", num_other_greedy, 0)
    checks.at_most(f"V={size}, other random draws", num_others, OTHER_DRAWS)
    checks.at_most(f"V={size}, log-probability", worst, NORMALIZER_ERROR)
    checks.at_most(f"V={size}, logits that changed", changed, 0)
    return checks


_EXACT_TABLES = ("integers", "last_token", "seen_ids", "seen_generated")


def _compare_tables(checks: Checks, where: str, ours: Drawer, right: Drawer, slots: Tensor) -> None:
    """Compares the tables' rows of some slots. On a GPU the tables of seen ids are wider from the start."""
    for name in (*_EXACT_TABLES, "seen_count"):
        b = getattr(right.sampler.tables, name)[slots]
        a = getattr(ours.sampler.tables, name).cpu()[slots][..., : b.shape[-1]]
        if name in _EXACT_TABLES:
            checks.same(f"{where}, {name}", a, b)
        else:
            checks.near(f"{where}, {name}", a, b, 1e-4)


def _align(ours: Drawer, right: Drawer) -> None:
    """Copies the definition's history to the target: after a draw that differed, the next draws must not."""
    for name in (*_EXACT_TABLES, "seen_count"):
        table = getattr(right.sampler.tables, name)
        getattr(ours.sampler.tables, name)[..., : table.shape[-1]].copy_(table)


def _slots(count: int) -> Tensor:
    """All slots, shuffled, with a row of padding."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return torch.tensor([*order[:1], -1, *order[1:]], dtype=torch.int32)


def check_log_normalizer(target: Target, size: int, rows: int) -> Checks:
    """Compares results with float64."""
    checks, function = Checks(), target.op("log_normalizer", torch.float32, V=size)
    logits = draw_logits(target, rows, size, 0)
    with poisoned():
        found = function(logits)
    checks.near(f"V={size}", found, torch.logsumexp(logits.cpu().double(), 1), NORMALIZER_ERROR)
    return checks


def check_top_tokens(target: Target, size: int, rows: int) -> Checks:
    """Compares ranks and ids with the definition's on the host, with many equal logits."""
    checks, function = Checks(), target.op("top_tokens", torch.float32, V=size)
    logits = draw_logits(target, rows, size, 0)
    logits[1::2] = logits[1::2].round()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    token_ids = torch.arange(rows) * 13 % size
    with poisoned():
        rank, top_ids = function(logits, order.to(target.device), token_ids.to(target.device), 20)
    right_rank, right_ids = top_tokens_definition(logits.cpu(), order, token_ids, 20)
    checks.same(f"V={size}, rank", rank, right_rank)
    checks.same(f"V={size}, most likely ids", top_ids, right_ids)
    return checks
