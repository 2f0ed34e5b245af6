"""One step of the real engine with a model of any sizes, recorded without a device and without memory."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import torch

from .. import ops
from ..engine.engine import Engine, EngineLimits
from ..engine.request import Request
from ..engine.sampler import Sampler
from ..engine.slot_tables import Vocabulary
from ..kernel_support.unsupported import UnsupportedReason
from ..models.files.checkpoint import Checkpoint
from ..models.files.stored import StoredTensor
from ..models.model import Model, ModelFile
from ..models.placement import Placement
from ..sampling_params import SamplingParams
from ..transfer import HostCopy
from ..triton_kernels import launch as triton_launch
from .launches import META, Launch, Recorder

DTYPE = torch.bfloat16


class Shapes(Hashable, Protocol):
    """The shapes of a model's tensors."""

    def tensor_shapes(self) -> Mapping[str, tuple[int, ...]]: ...


@dataclass(frozen=True)
class StoredShapes:
    """The shapes of the tensors of a checkpoint, whose weights are not read."""

    tensors: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> StoredShapes:
        return cls(tuple((name, checkpoint.shape(name)) for name in sorted(checkpoint.names)))

    def tensor_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return dict(self.tensors)


@dataclass(frozen=True)
class Step:
    """What a step computes: `decoding` rows of one token, and a chunk of each length in `prompts`.

    Args:
        sizes: of the model.
        state_dtype: of the recurrent states.
        batch_invariant: as in a job's settings; jobs have it.
        quantization: of large matrices; None for bfloat16.
        scored: tokens at the end of each prompt that are scored. Then nothing is sampled, and `decoding` is 0.
    """

    sizes: Shapes
    decoding: int
    prompts: tuple[int, ...] = ()
    state_dtype: torch.dtype = torch.float32
    batch_invariant: bool = False
    quantization: str | None = None
    scored: int = 0

    @property
    def num_rows(self) -> int:
        return self.decoding + len(self.prompts)


@cache
def record(step: Step) -> Sequence[Launch]:
    """Serves requests with a real engine until it makes this step; returns the launches of that step.

    A launch counts from the end of the step before, so that the admission of prompts belongs to the step.
    """
    recorder = Recorder()
    with _no_device(), torch.inference_mode():
        model = _model(step.sizes, step.state_dtype, step.batch_invariant, step.quantization)
        with recorder.recording(), _counted_layers(model, recorder):
            found = list(_steps(step, model, recorder))
    return tuple(found[-1])


@contextmanager
def _no_device() -> Iterator[None]:
    """Kernels serve without a device, and tokens that were never sampled are zeros."""

    def zeros(copy: Any) -> torch.Tensor:
        return torch.zeros(copy._tensor.shape, dtype=copy._tensor.dtype, device="cpu")

    with (
        patch.object(UnsupportedReason, "__call__", lambda *given, **named: None),
        patch.object(triton_launch, "unsupported", lambda *given, **named: None),
        patch.object(HostCopy, "read", zeros),
    ):
        yield


@cache
def _model(sizes: Shapes, state_dtype: torch.dtype, batch_invariant: bool, quantization: str | None) -> Model:
    dense = {
        name: StoredTensor(torch.empty(shape, dtype=DTYPE, device=META))
        for name, shape in sizes.tensor_shapes().items()
    }
    file = ModelFile.open(Checkpoint(dense, (), path=Path("no file"), format="pth"))
    placement = Placement(META, DTYPE, quantization, state_dtype)
    specs = tuple(dict.fromkeys((*file.ops_at(placement.head), *Sampler.OPS)))
    orders = (ops._AUTO, ops._AUTO_RECURRENCES)
    with ExitStack() as stack:
        for order in orders:  # as on a CUDA device
            stack.enter_context(patch.dict(order, meta=order["cuda"]))
        table = ops.resolve(specs, "auto", META, DTYPE, file.sizes, state_dtype)
    # Weights without numbers pass for finite, which the conversion to 8 bits asks.
    with patch.object(torch, "isfinite", lambda x: torch.ones(x.shape, dtype=torch.bool, device="cpu")):
        return Model(file, placement, table, batch_invariant=batch_invariant)


@contextmanager
def _counted_layers(model: Model, recorder: Recorder) -> Iterator[None]:
    """Makes the model tell the recorder which layer it computes."""
    layer = model.architecture.layer

    def counted(i: int, *args: Any) -> Any:
        recorder.layer = i
        try:
            return layer(i, *args)
        finally:
            recorder.layer = None

    with patch.object(model.architecture, "layer", counted):
        yield


def _steps(step: Step, model: Model, recorder: Recorder) -> Iterator[list[Launch]]:
    """The launches of each step of the engine that computes what is wanted."""
    engine = Engine(
        model,
        Vocabulary.plain(model.sizes["V"]),
        EngineLimits(step.num_rows, step.num_rows + sum(step.prompts)),
        prefix_sharing=False,
        run_ahead=True,
        record_steps=True,
    )
    wanted = (step.decoding, sorted(step.prompts))
    is_wanted = False
    plan = engine.scheduler.plan

    def planned() -> Any:
        nonlocal is_wanted
        found = plan()
        chunks = sorted(int(size) for size in found.chunk_sizes)
        is_wanted = (len(found.decoding), chunks) == wanted
        recorder.longest = max((*chunks, 1))
        return found

    recorder.launches.clear()
    requests = _Requests(step)
    with patch.object(engine.scheduler, "plan", planned):
        for _ in engine.run(requests):
            requests.is_open = True
            if is_wanted:
                yield recorder.launches[:]
            is_wanted = False
            recorder.launches.clear()


class _Requests:
    """A `Source`: rows that decode throughout, rows that end after one token, then the prompts, which take their place.

    The prompts come when `is_open`, after the first step, because an engine starts long prompts first.
    """

    is_open = True

    def __init__(self, step: Step) -> None:
        firsts = [(1, 4)] * step.decoding + [(1, 1)] * (len(step.prompts) if step.decoding else 0)
        self._groups = [group for group in (firsts, [(length, 1) for length in step.prompts]) if group]
        self._made = 0
        self._scored = step.scored
        self.is_ended = False

    def has_ready(self, count: int) -> bool:
        return True

    def take(self, most: int, wait: bool) -> list[Request]:
        made = []
        for length, max_tokens in self._groups.pop(0) if self._groups and self.is_open else ():
            params = SamplingParams(max_tokens=max_tokens, temperature=1.0, top_p=0.85, ignore_eos=True)
            made.append(self._request(length, params))
            self._made += 1
        self.is_open, self.is_ended = False, not self._groups
        return made

    def _request(self, length: int, params: SamplingParams) -> Request:
        if not self._scored:
            return Request(self._made, [1] * length, params, row=self._made)
        start = max(1, length + 1 - self._scored)
        params = SamplingParams(max_tokens=0)
        return Request(self._made, [1] * length, params, row=self._made, score_start=start, next_token_ids=(1,))
