"""Checks of `sample`: against its definition step by step, a row's bits, and the frequencies of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from rwkv_batch.checks.comparisons import Checks
from rwkv_batch.checks.sampling import SETTINGS, Drawer, check_sample, draw_logits
from rwkv_batch.checks.target import Target
from rwkv_batch.sampling_params import SamplingParams

from .context import Context
from .record import Point


def points(context: Context) -> Iterator[tuple[str, Callable[[], Point]]]:
    names = ("greedy", "penalties") if context.is_rehearsal else SETTINGS
    for name, params in ((name, SETTINGS[name]) for name in names):
        yield f"sample {name}", partial(_against_definition, context, [params])
    yield "sample mixed", partial(_against_definition, context, list(SETTINGS.values()))
    yield "sample rows to the bit", partial(_rows, context)
    for name, params in {"top-k": SamplingParams(top_k=8), "top-p": SamplingParams(top_p=0.8)}.items():
        yield f"sample frequencies of {name}", partial(_frequencies, context, params)


def _target(context: Context) -> Target:
    return Target("triton", context.device)


def _size(context: Context) -> int:
    return 97 if context.is_rehearsal else 65536


def _against_definition(context: Context, params: list[SamplingParams]) -> Point:
    count, steps = (len(params), 2) if context.is_rehearsal else (max(64, 8 * len(params)), 6)
    size = _size(context)
    return check_sample(_target(context), size, params, count, steps).point()


def _rows(context: Context) -> Point:
    """Checks that a row draws the same token in another place and alone."""
    params = list(SETTINGS.values())
    count = 4 if context.is_rehearsal else 256
    together, shuffled, alone = (Drawer(_target(context), _size(context), params, count, "sample") for _ in range(3))
    slots = torch.arange(count, dtype=torch.int32, device=context.device)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(context.device)
    logits = draw_logits(_target(context), count, together.size, 0)
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
    """Compares the frequencies of many draws from the same logits with their probabilities, by chi-square."""
    count, steps = (16, 1) if context.is_rehearsal else (2048, 10)
    drawer = Drawer(_target(context), _size(context), [params], count, "sample")
    logits = draw_logits(_target(context), 1, drawer.size, 0)[0] * 1.5
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
