"""The part `engine-equal`: the engine on the device against the engine with the definitions on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from rwkv_batch.checks.comparisons import Checks
from rwkv_batch.engine.engine import Engine
from rwkv_batch.engine.request import Completion, Request
from rwkv_batch.engine.source import Pulled
from rwkv_batch.errors import ConfigurationError
from rwkv_batch.measure.table import format_lines
from rwkv_batch.model_summary import DEMO_MODEL
from rwkv_batch.models.architecture import architectures, version_named
from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.model import Model
from rwkv_batch.models.random_weights import complete_sizes, random_tensors
from rwkv_batch.sampling_params import SamplingParams

from .context import Context
from .engines import load, make_engine, random_prompts, serve
from .record import Point, is_red

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
SAMPLED = SamplingParams(top_p=0.85, presence_penalty=0.3, frequency_penalty=0.2, ignore_eos=True)
SIZES = {"L": 3, "C": 128, "F": 256, "V": 97}
TINY_SIZES = {"L": 2, "C": 32, "F": 64, "V": 40, "N": 16}
TIE = 2e-3
"""Two tokens whose log-probabilities differ by less may change places."""
LOGPROB_ERROR = {"float32": 2e-3, "float16 state": 5e-2, "bfloat16": 0.3}
OTHER_ROWS = {"float32": 0.2, "float16 state": 0.5}
"""Share of rows whose sampled tokens may differ: one draw on a boundary changes all that follows."""


def run(context: Context) -> list[str]:
    versions = [version.name for version in architectures()]
    versions = versions[:: len(versions) - 1] if context.is_rehearsal else versions
    has_demo = not context.is_rehearsal and find_spec("safetensors") is not None
    names = [*(["demo"] if has_demo else []), *versions]
    for name in names:
        kinds = ["float32", "to the bit"]
        kinds += ["float16 state"] if _has_float16_state(name) else []
        for kind in kinds if not context.is_rehearsal or name == names[-1] else kinds[:1]:
            context.record.measure(f"{name} {kind}", partial(_CHECKS[kind], context, name, kind))
        if not context.is_rehearsal:
            context.record.measure(f"{name} bfloat16", partial(_half, context, name))
    return _table(context.record.points)


def _has_float16_state(name: str) -> bool:
    if name == "demo":
        return True
    version = version_named(name)
    try:
        version.state_fields(complete_sizes(version, **SIZES), torch.float32, torch.float16)
    except ConfigurationError:
        return False
    return True


def _path(context: Context, name: str) -> Path:
    if name == "demo":
        return DEMO_MODEL
    path = context.folder / f"{name}.pth"
    if not path.exists():
        version = version_named(name)
        sizes = complete_sizes(version, **(TINY_SIZES if context.is_rehearsal else SIZES))
        torch.save(random_tensors(version, sizes), path)
    return path


def _on_device(
    context: Context, name: str, dtype: str = "float32", state: str = "float32", batch_invariant: bool = False
) -> Model:
    checkpoint = open_checkpoint(_path(context, name))
    return load(context, checkpoint, dtype, state, batch_invariant=batch_invariant)


def _on_host(context: Context, name: str, state: str = "float32") -> Engine:
    """Makes the engine to compare with: all ops are their definitions, no step is recorded or runs ahead."""
    checkpoint, host = open_checkpoint(_path(context, name)), torch.device("cpu")
    model = load(context, checkpoint, "float32", state, "reference", host)
    return make_engine(model, *_shape(context), run_ahead=False, record_steps=False)


def _shape(context: Context) -> tuple[int, int]:
    """Returns the number of slots, below that of requests, and of prompt tokens of a step, below that of a prompt."""
    return (2, 2) if context.is_rehearsal else (8, 40)


def _requests(context: Context, model: Model, params: SamplingParams, score: bool = False) -> list[Request]:
    lengths = (3, 1) if context.is_rehearsal else [1 + 13 * i % 61 for i in range(32)]
    most = 0 if score else 2 if context.is_rehearsal else 48
    made = []
    for i, prompt in enumerate(random_prompts(model, [length + score for length in lengths], seed=1)):
        own = replace(params, max_tokens=most)
        made.append(Request(i, prompt, own, seed=5, row=i, score_start=1 if score else None))
    return made


def _complete(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    return sorted(engine.generate(Pulled(requests)), key=lambda completion: completion.key)


def _equal(context: Context, name: str, kind: str) -> Point:
    state = "float16" if kind == "float16 state" else "float32"
    model = _on_device(context, name, state=state)
    slots, tokens = _shape(context)
    ours, right, checks = serve(model, slots, tokens), _on_host(context, name, state), Checks()
    if kind == "float32":
        _compare_greedy(context, checks, model, ours, right, kind)
    _compare_scores(context, checks, model, ours, right, kind)
    got, want = (_complete(engine, _requests(context, model, SAMPLED)) for engine in (ours, right))
    pairs = list(zip(got, want, strict=True))
    others = sum(not np.array_equal(a.token_ids, b.token_ids) for a, b in pairs)
    checks.at_most("share of rows with other sampled tokens", others / len(pairs), OTHER_ROWS[kind])
    ours.check_integrity()
    return checks.point()


def _compare_greedy(context: Context, checks: Checks, model: Model, ours: Engine, right: Engine, kind: str) -> None:
    """Compares tokens and their log-probabilities, up to the first difference at a tie."""
    got = _complete(ours, _requests(context, model, GREEDY))
    want = _complete(right, _requests(context, model, replace(GREEDY, logprobs=2)))
    wrong, worst = 0, 0.0
    for a, b in zip(got, want, strict=True):
        assert b.logprobs is not None
        for i, (mine, other) in enumerate(zip(a.token_ids, b.token_ids, strict=True)):
            if mine != other:
                first, second = b.logprobs[i].top_logprobs[:2]
                wrong += first - second > TIE
                break
            worst = max(worst, abs(a.token_logprobs[i] - b.token_logprobs[i]))
    checks.at_most("rows with other greedy tokens", wrong, 0)
    checks.at_most("log-probability of greedy tokens", worst, LOGPROB_ERROR[kind])


def _compare_scores(context: Context, checks: Checks, model: Model, ours: Engine, right: Engine, kind: str) -> None:
    differences = _score_differences(context, model, ours, right)
    checks.at_most("score of a prompt token", max(differences), LOGPROB_ERROR[kind])


def _score_differences(context: Context, model: Model, ours: Engine, right: Engine) -> list[float]:
    """Returns the absolute differences of the log-probabilities of all prompt tokens."""
    got, want = (_complete(engine, _requests(context, model, GREEDY, score=True)) for engine in (ours, right))
    return [
        abs(a.logprob - b.logprob)
        for one, other in zip(got, want, strict=True)
        for a, b in zip(one.prompt_scores or (), other.prompt_scores or (), strict=True)
    ]


def _half(context: Context, name: str) -> Point:
    """Compares scores in bfloat16 with float32 on average over all tokens, because a score is a sum."""
    model, checks = _on_device(context, name, "bfloat16"), Checks()
    slots, tokens = _shape(context)
    ours, right = serve(model, slots, tokens), _on_host(context, name)
    differences = _score_differences(context, model, ours, right)
    checks.at_most("mean score of a prompt token", sum(differences) / len(differences), LOGPROB_ERROR["bfloat16"])
    return checks.point()


def _to_the_bit(context: Context, name: str, kind: str) -> Point:
    """Checks that with batch_invariant a row has the same tokens and log-probabilities alone and among others."""
    model, checks = _on_device(context, name, "bfloat16", batch_invariant=True), Checks()
    slots, tokens = _shape(context)
    made = _requests(context, model, SAMPLED)
    together = _complete(serve(model, slots, tokens), made)
    alone_engine = serve(model, 1, max(tokens // 3, 1))
    rows = made[:1] if context.is_rehearsal else made[::5]
    alone = _complete(alone_engine, rows)
    different = 0
    for completion in alone:
        other = together[completion.key]
        is_same = np.array_equal(completion.token_ids, other.token_ids)
        different += not (is_same and np.array_equal(completion.token_logprobs, other.token_logprobs))
    checks.at_most("rows that differ alone", different, 0)
    return checks.point()


_CHECKS = {"float32": _equal, "float16 state": _equal, "to the bit": _to_the_bit}


def _table(points: dict[str, Point]) -> list[str]:
    rows = [
        [name, "red" if is_red(point) else "green", f"{point['worst_share_of_limit']:.2f}"]
        for name, point in points.items()
    ]
    return format_lines(["engine", "", "worst / limit"], rows)
