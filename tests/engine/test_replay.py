"""Recorded steps on the fake CUDA device: operations and addresses, replayed without their Python code."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.cuda import DEVICE, fake_cuda
from fakes.streams import Hazard
from versions import served_by, with_matrix_state

from rwkv_batch.engine.engine import Engine, EngineLimits
from rwkv_batch.engine.recorded_sizes import RecordedSizes
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.engine.slot_tables import Vocabulary
from rwkv_batch.engine.source import Pulled
from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.model import Model, ModelFile
from rwkv_batch.models.placement import place
from rwkv_batch.ops import resolve
from rwkv_batch.sampling_params import SamplingParams
from rwkv_batch.transfer import upload

pytest.importorskip("triton")

SIZES = dict(n_layer=2, n_embd=32, n_att=32, n_ffn=64, head_size=16, vocab=97)
PARAMS = [
    SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True),
    SamplingParams(max_tokens=7, top_p=0.8, presence_penalty=0.5, penalty_decay=0.9, ignore_eos=True),
    SamplingParams(max_tokens=6, top_k=5, min_tokens=2, logit_bias={4: 3.0}, ignore_eos=True),
    SamplingParams(
        max_tokens=5, logprobs=3, top_p=0.6, top_p_order="rwkv", temperature=1.2, allowed_token_ids=list(range(50))
    ),
    SamplingParams(max_tokens=0),
]
BACKENDS = {"float32": "reference", "float16": "triton"}
"""State dtype → the backend of the expected results, on the CPU, where nothing is recorded. A float16 state is rounded
stochastically, and a last bit of a sum may change its rounding; so the expected results come from the same kernels."""

GATE = ("7.0", "float16", 3)
CASES = [
    pytest.param(*case, marks=[] if case == GATE else pytest.mark.soak, id="-".join(map(str, case)))
    for case in product(served_by("triton"), BACKENDS, (1, 3, 5))
    if case[0] in with_matrix_state() or case[1] == "float32"
]


def serve(path: Path, device: str, backend: str, state_dtype: str, batch_size: int) -> dict[Any, Any]:
    """Serves requests with every kind of setting. Returns key → tokens and all log-probabilities."""
    file = ModelFile.open(open_checkpoint(path))
    placement = place(device=device, dtype="float32", state_dtype=state_dtype)
    # Interpreted kernels compute on tensors in host memory.
    where = torch.device("cpu"), placement.dtype, file.sizes, placement.state_dtype
    ops = resolve(dict.fromkeys((*file.ops, *Sampler.OPS)), backend, *where)
    vocabulary = Vocabulary.plain(file.sizes["V"])
    engine = Engine(Model(file, placement, ops), vocabulary, EngineLimits(batch_size, 8))
    prompts = torch.randint(1, 97, (5, 9), generator=torch.Generator().manual_seed(5)).tolist()
    requests = [
        Request(row, prompts[row][: 1 + (5 * row) % 9], params, row=row, score_start=1 if row > 2 else None)
        for row, params in enumerate(PARAMS)
    ]
    found = {}
    for completion in engine.generate(Pulled(requests)):
        scores = [entry.logprob for entry in completion.prompt_scores or ()]
        found[completion.key] = completion.token_ids.tolist(), [*completion.token_logprobs, *scores]
    return found


@pytest.mark.parametrize(("version", "state_dtype", "batch_size"), CASES)
def test_replayed_steps_give_the_same_tokens(version, state_dtype, batch_size, checkpoint_file):
    path = checkpoint_file(version, **SIZES)
    expected = serve(path, "cpu", BACKENDS[state_dtype], state_dtype, batch_size)
    with fake_cuda() as cuda:
        got = serve(path, "cuda", "triton", state_dtype, batch_size)
    assert {key: token_ids for key, (token_ids, _) in got.items()} == {key: ids for key, (ids, _) in expected.items()}
    for key, (_, logprobs) in got.items():
        assert logprobs == pytest.approx(expected[key][1], abs=1e-4), key
    sizes = RecordedSizes(batch_size, 8)
    num_forwards, num_draws = len(sizes.steps), len(sizes.draws)
    forwards, draws = cuda.graphs[:num_forwards], cuda.graphs[num_forwards : num_forwards + num_draws]
    assert len(cuda.graphs) == len(sizes)
    assert all(graph.num_launches > 10 for graph in forwards) and all(graph.num_launches for graph in draws)
    assert sum(graph.num_replays for graph in draws) >= 6
    with_prompts = [graph for graph, size in zip(forwards, sizes.steps, strict=True) if size.has_prompts]
    assert sum(graph.num_replays for graph in with_prompts) >= 1


def test_memory_that_a_recorded_step_does_not_write_is_garbage_in_its_replay():
    with fake_cuda():
        given, graph = torch.ones(3, device=DEVICE), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            forgotten = torch.zeros_like(torch.empty_like(given)), torch.empty_like(given) + given
        given.fill_(2)
        graph.replay()
        assert forgotten[0].cpu().tolist() == [0, 0, 0]
        assert forgotten[1].cpu().isnan().all()


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x + upload([1, 2, 3], torch.float32, DEVICE),
    ],
    ids=["a number is read", "a tensor is read", "the size of a result is read", "numbers are uploaded"],
)
def test_a_step_that_needs_the_host_is_not_recorded(operation):
    with fake_cuda():
        x, graph = torch.ones(3, device=DEVICE), torch.cuda.CUDAGraph()
        operation(x)
        with pytest.raises(Hazard, match="part of a recorded step"), torch.cuda.graph(graph):
            operation(x)
