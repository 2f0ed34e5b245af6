"""Random requests on the fake CUDA device, whose copies run as late as they may: the results equal those of a CPU."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from fakes.constraint import Alternating, Hashed
from fakes.cuda import fake_cuda
from fakes.device_model import HashModelOnDevice
from fakes.model import check_bookkeeping, make_engine, run

from rwkv_batch.engine.request import Request
from rwkv_batch.engine.source import Pulled
from rwkv_batch.sampling_params import SamplingParams

KINDS = [
    dict(),
    dict(temperature=0.0, logprobs=2),
    dict(top_p=0.7, presence_penalty=0.4, repetition_penalty=1.3),
    dict(min_tokens=2, stop_token_ids=[3, 4], logit_bias={4: 3.0}),
    dict(max_tokens=0),
]
rows = st.lists(
    st.tuples(
        st.integers(0, 3),  # which of a few prompts, so that prefixes are shared
        st.integers(1, 30),  # of how many tokens
        st.sampled_from(KINDS),
        st.integers(1, 3),  # samples
        st.sampled_from(("", "scores", "next")),
        st.sampled_from((None, None, Alternating, Hashed)),
    ),
    min_size=1,
    max_size=7,
)


def make_requests(rows):
    return [
        Request(
            (row, sample),
            [prompt] * (length // 2) + list(range(1, length - length // 2 + 1)),
            SamplingParams(**{"max_tokens": 4, **kind}),
            row=row,
            sample=sample,
            score_start=1 if what == "scores" and sample == 0 else None,
            next_token_ids=(3, 7) if what == "next" and sample == 0 else (),
            new_constraint=constraint,
        )
        for row, (prompt, length, kind, samples, what, constraint) in enumerate(rows)
        for sample in range(samples)
    ]


def numbers(completion):
    scores = (completion.logprobs, completion.prompt_scores, completion.next_scores)
    return [*completion.token_logprobs, *(entry.logprob for part in scores for entry in part or ())]


@settings(max_examples=max(settings().max_examples // 6, 1))  # each takes seconds: kernels are interpreted
@given(rows=rows, slots=st.integers(1, 4), extra=st.integers(0, 12), graphs=st.booleans(), aborted=st.integers(0, 30))
def test_results_are_those_of_a_cpu(rows, slots, extra, graphs, aborted):
    requests = make_requests(rows)
    expected = run(requests, max_batch_size=slots, max_batch_tokens=slots + extra)
    found = {}
    with fake_cuda():
        engine = make_engine(
            HashModelOnDevice(), max_batch_size=slots, max_batch_tokens=slots + extra, record_steps=graphs
        )
        for number, finished in enumerate(engine.run(Pulled(requests))):
            found |= {completion.key: completion for completion in finished}
            if number == aborted:
                engine.abort(requests[0].key)
            check_bookkeeping(engine)
    assert found.keys() == expected.keys()
    for key, completion in found.items():
        want = expected[key]
        if completion.finish_reason == "abort":
            assert key == requests[0].key
            assert completion.token_ids.tolist() == want.token_ids[: len(completion.token_ids)].tolist()
        else:
            assert completion.token_ids.tolist() == want.token_ids.tolist()
            assert (completion.finish_reason, completion.stop_reason) == (want.finish_reason, want.stop_reason)
            assert numbers(completion) == pytest.approx(numbers(want), abs=1e-5)
