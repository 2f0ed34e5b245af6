"""Checks of what happens to logits: sampling, over steps in which tables evolve, and the most likely tokens."""

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
from .limits import NORMALIZER_ERROR
from .outcome import Checks, poisoned
from .target import Target

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
        own: the op among "sample" and "select" that is the target's own; the others are definitions.
    """

    def __init__(
        self, target: Target, size: int, params: Sequence[SamplingParams], count: int, own: str | None = None
    ) -> None:
        self.size, self.device = size, target.device
        served = {own: target.op(own, torch.float32, V=size)} if own else {}
        self.sampler = Sampler(count, Vocabulary.plain(size), target.device, OpTable(_DEFINITIONS | served, ()))
        for slot in range(count):
            prompt = [1 + slot % 50, 7, 9]
            self.sampler.assign(slot, Request(slot, prompt, params[slot % len(params)], seed=3, row=slot))

    def draw(self, logits: Tensor, slot_index: Tensor) -> tuple[Tensor, Tensor]:
        self.sampler.prepare(slot_index[slot_index >= 0].cpu().numpy())
        return self.sampler.draw(logits, slot_index)


def draw_logits(target: Target, rows: int, size: int, step: int) -> Tensor:
    generator = torch.Generator(target.device).manual_seed(step)
    return 3 * torch.randn(rows, size, device=target.device, generator=generator)


def check_sample(
    target: Target,
    size: int,
    params: Sequence[SamplingParams],
    count: int,
    steps: int,
    own: str = "sample",
    most_others: float = 0.0,
) -> Checks:
    """The same draws, log-probabilities and tables over some steps; the logits come back as they were.

    Args:
        size, params, count, own: as for `Drawer`.
        most_others: share of draws that may differ: the uniform number may fall on a boundary that float32 leaves open.
    """
    checks = Checks()
    ours, right = Drawer(target, size, params, count, own), Drawer(target, size, params, count)
    slots = _slots(target, count)
    live = slots >= 0
    num_others, worst, changed = 0, 0.0, 0
    for step in range(steps):
        logits = draw_logits(target, len(slots), size, step)
        given = logits.clone()
        with poisoned():
            token_ids, logprobs = ours.draw(given, slots)
        changed += int((given != logits)[live].sum())
        want_ids, want_logprobs = right.draw(logits, slots)
        same = (token_ids == want_ids) & live
        num_others += int((~same & live).sum())
        errors = (logprobs - want_logprobs)[same].abs().nan_to_num(nan=torch.inf)
        worst = max([worst, *errors.tolist()])
        # From here on both have sampled the same, as penalties follow what was sampled.
        if not bool(same[live].all()):
            break
    checks.at_most(f"V={size}, share of other draws", num_others / (count * steps), most_others)
    checks.at_most(f"V={size}, log-probability", worst, NORMALIZER_ERROR)
    checks.at_most(f"V={size}, logits that changed", changed, 0)
    if not num_others:
        _compare_tables(checks, size, ours, right, count)
    return checks


def _compare_tables(checks: Checks, size: int, ours: Drawer, right: Drawer, count: int) -> None:
    tables = (ours.sampler.tables, right.sampler.tables)
    for name in ("integers", "last_token", "seen_ids", "seen_generated"):
        a, b = (getattr(table, name)[:count] for table in tables)
        checks.same(f"V={size}, {name}", a, b)
    a, b = (table.seen_count[:count] for table in tables)
    checks.near(f"V={size}, seen_count", a, b, 1e-4)


def _slots(target: Target, count: int) -> Tensor:
    """All slots, shuffled, with a row of padding."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return torch.tensor([*order[:1], -1, *order[1:]], dtype=torch.int32, device=target.device)


def check_log_normalizer(target: Target, size: int, rows: int) -> Checks:
    """That of float64."""
    checks, function = Checks(), target.op("log_normalizer", torch.float32, V=size)
    logits = draw_logits(target, rows, size, 0)
    with poisoned():
        found = function(logits)
    checks.near(f"V={size}", found, torch.logsumexp(logits.double(), 1), NORMALIZER_ERROR)
    return checks


def check_top_tokens(target: Target, size: int, rows: int) -> Checks:
    """Ranks and ids are those of the definition, among many equal logits."""
    checks, function = Checks(), target.op("top_tokens", torch.float32, V=size)
    logits = draw_logits(target, rows, size, 0)
    logits[1::2] = logits[1::2].round()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).to(target.device)
    token_ids = torch.arange(rows, device=target.device) * 13 % size
    with poisoned():
        rank, top_ids = function(logits, order, token_ids, 20)
    right_rank, right_ids = top_tokens_definition(logits, order, token_ids, 20)
    checks.same(f"V={size}, rank", rank, right_rank)
    checks.same(f"V={size}, most likely ids", top_ids, right_ids)
    return checks
