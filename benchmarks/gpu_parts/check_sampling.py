"""Checks of `sample`: against its definition step by step, row by row, and its frequencies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from rwkv_batch.engine.request import Request
from rwkv_batch.engine.sample import sample as sample_definition
from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.engine.selection import select
from rwkv_batch.engine.slot_tables import Vocabulary
from rwkv_batch.models.scoring import log_normalizer
from rwkv_batch.ops import OpTable
from rwkv_batch.sampling_params import SamplingParams

from .context import Context
from .device import poisoned
from .ops import Checks, op
from .record import Point

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
DISAGREEMENT = 0.01
"""Share of draws that may differ: the uniform number falls on a boundary that float32 leaves open."""


def points(context: Context) -> Iterator[tuple[str, Callable[[], Point]]]:
    names = ("greedy", "penalties") if context.is_rehearsal else SETTINGS
    for name, params in ((name, SETTINGS[name]) for name in names):
        yield f"sample {name}", partial(_against_definition, context, [params])
    yield "sample mixed", partial(_against_definition, context, list(SETTINGS.values()))
    yield "sample rows to the bit", partial(_rows, context)
    for name, params in {"top-k": SamplingParams(top_k=8), "top-p": SamplingParams(top_p=0.8)}.items():
        yield f"sample frequencies of {name}", partial(_frequencies, context, params)


class _Drawer:
    """A sampler whose slots all have a request."""

    def __init__(self, context: Context, params: list[SamplingParams], count: int, is_definition: bool) -> None:
        self.size = 97 if context.is_rehearsal else 65536
        function = sample_definition if is_definition else op("sample", context.device, V=self.size)
        ops = OpTable({"sample": function, "log_normalizer": log_normalizer, "select": select}, ())
        self.sampler = Sampler(count, Vocabulary.plain(self.size), context.device, ops)
        for slot in range(count):
            prompt = [1 + slot % 50, 7, 9]
            self.sampler.assign(slot, Request(slot, prompt, params[slot % len(params)], seed=3, row=slot))

    def draw(self, logits: Tensor, slot_index: Tensor) -> tuple[Tensor, Tensor]:
        self.sampler.prepare(slot_index[slot_index >= 0].cpu().numpy())
        return self.sampler.draw(logits, slot_index)


def _logits(context: Context, rows: int, size: int, step: int) -> Tensor:
    generator = torch.Generator(context.device).manual_seed(step)
    return 3 * torch.randn(rows, size, device=context.device, generator=generator)


def _slots(context: Context, count: int) -> Tensor:
    """All slots, shuffled, with a row of padding."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return torch.tensor([*order[:1], -1, *order[1:]], dtype=torch.int32, device=context.device)


def _against_definition(context: Context, params: list[SamplingParams]) -> Point:
    """The same draws, log-probabilities and tables over some steps; the logits come back as they were."""
    count, steps = (len(params), 2) if context.is_rehearsal else (max(64, 8 * len(params)), 6)
    ours, right = (_Drawer(context, params, count, is_definition) for is_definition in (False, True))
    slots = _slots(context, count)
    live, checks = slots >= 0, Checks()
    num_different, worst, changed = 0, 0.0, 0
    for step in range(steps):
        logits = _logits(context, len(slots), ours.size, step)
        given = logits.clone()
        with poisoned():
            token_ids, logprobs = ours.draw(given, slots)
        changed += int((given != logits)[live].sum())
        want_ids, want_logprobs = right.draw(logits, slots)
        same = (token_ids == want_ids) & live
        num_different += int((~same & live).sum())
        worst = max(worst, float((logprobs - want_logprobs)[same].abs().nan_to_num(nan=torch.inf).max()))
        # From here on both have sampled the same, as penalties follow what was sampled.
        if not bool(same[live].all()):
            break
    checks.at_most("share of other draws", num_different / (count * steps), DISAGREEMENT)
    checks.at_most("log-probability", worst, 1e-4)
    checks.at_most("logits that changed", changed, 0)
    tables = (ours.sampler.tables, right.sampler.tables)
    if not num_different:
        for name in ("integers", "last_token", "seen_ids", "seen_generated"):
            a, b = (getattr(table, name)[:count] for table in tables)
            checks.same(name, a, b)
        a, b = (table.seen_count[:count] for table in tables)
        checks.at_most("seen_count", float((a - b).abs().max()), 1e-4)
    return checks.point()


def _rows(context: Context) -> Point:
    """A row draws the same in another place, and alone."""
    params = list(SETTINGS.values())
    count = 4 if context.is_rehearsal else 256
    together, shuffled, alone = (_Drawer(context, params, count, False) for _ in range(3))
    slots = torch.arange(count, dtype=torch.int32, device=context.device)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(context.device)
    logits = _logits(context, count, together.size, 0)
    token_ids, logprobs = together.draw(logits.clone(), slots)
    other_ids, other_logprobs = shuffled.draw(logits[order].contiguous(), slots[order].contiguous())
    checks = Checks()
    checks.same("tokens in another order", other_ids, token_ids[order])
    checks.same("log-probabilities in another order", other_logprobs, logprobs[order])
    for row in range(0, count, 1 if context.is_rehearsal else 37):
        own_ids, own_logprobs = alone.draw(logits[row : row + 1].clone(), slots[row : row + 1])
        checks.same(f"token of row {row} alone", own_ids, token_ids[row : row + 1])
        checks.same(f"log-probability of row {row} alone", own_logprobs, logprobs[row : row + 1])
    return checks.point()


def _frequencies(context: Context, params: SamplingParams) -> Point:
    """A chi-square statistic of many draws from the same logits, each of its own stream."""
    count, steps = (16, 1) if context.is_rehearsal else (2048, 10)
    drawer = _Drawer(context, [params], count, False)
    logits = _logits(context, 1, drawer.size, 0)[0] * 1.5
    ranked, order = torch.softmax(logits.double(), 0).sort(descending=True)
    mass_before = ranked.cumsum(0) - ranked
    kept = mass_before < params.top_p if not params.top_k else torch.arange(len(ranked), device=ranked.device) < 8
    right = torch.zeros_like(ranked).index_copy_(0, order, ranked * kept)
    right /= right.sum()
    slots = torch.arange(count, dtype=torch.int32, device=context.device)
    counts = torch.zeros_like(right)
    for _ in range(steps):
        token_ids, _ = drawer.draw(logits.expand(count, -1).contiguous(), slots)
        counts += torch.bincount(token_ids, minlength=drawer.size)
    expected = right * count * steps
    common = expected >= 5
    groups = [(counts[common], expected[common]), (counts[~common].sum()[None], expected[~common].sum()[None])]
    statistic = sum(float((((a - b) ** 2) / b.clamp_min(1e-9))[b > 1].sum()) for a, b in groups)
    freedom = max(sum(int((b > 1).sum()) for _, b in groups) - 1, 1)
    checks = Checks()
    checks.at_most("draws outside of what is kept", float(counts[right == 0].sum()), 0)
    checks.at_most("chi-square", statistic, freedom + 5 * (2 * freedom) ** 0.5 + 5)
    return checks.point()
