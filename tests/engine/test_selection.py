"""Selection: filters and draws equal a plain implementation that sorts the whole vocabulary, one row at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.cpu_kernels import select as native
from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.engine.selection import Filters, select

IMPLEMENTATIONS = {"reference": select, "cpu": native.select}


@pytest.fixture(params=IMPLEMENTATIONS)
def choose(request):
    """The definition of `select`, and the native kernel if there is a compiler."""
    if request.param == "cpu" and (reason := unavailable()):
        pytest.skip(f"native kernels: {reason}")
    return IMPLEMENTATIONS[request.param]


def expected_probabilities(logits, temperature, top_p, top_k, min_p, untempered):
    """The distribution that a row is drawn from, [V] float64, found by sorting the vocabulary."""
    logits = logits.double().numpy()
    if temperature == 0:
        return np.eye(len(logits))[int(np.argmax(logits))]
    filter_logits = logits if untempered else logits / temperature
    p = np.exp(filter_logits - filter_logits.max())
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda i: (-logits[i], i))
    keep = [i for i in order if p[i] >= min_p * p.max()]
    if top_k > 0:
        keep = keep[:top_k]
    if top_p < 1:
        ranked = p if untempered else np.where(np.isin(np.arange(len(p)), keep), p, 0) / p[keep].sum()
        mass, nucleus = 0.0, []
        for i in order:
            mass += ranked[i]
            nucleus.append(i)
            if mass >= top_p:
                break
        keep = [i for i in keep if logits[i] >= logits[nucleus[-1]]]
    weights = np.zeros_like(p)
    weights[keep] = np.exp((logits[keep] - logits.max()) / temperature)
    return weights / weights.sum()


def filters(n, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, untempered=False):
    return Filters(
        temperature=torch.full((n,), temperature),
        top_p=torch.full((n,), top_p, dtype=torch.float64),
        top_k=torch.full((n,), top_k),
        min_p=torch.full((n,), min_p, dtype=torch.float64),
        untempered=torch.full((n,), untempered),
    )


def inverse_cdf_support(choose, logits, n=2001, **settings):
    """The frequency of each token when the uniform number takes n equally spaced values in [0, 1)."""
    sweep = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn = choose(logits.expand(n, -1).clone(), filters(n, **settings), sweep)
    return torch.bincount(drawn, minlength=logits.shape[-1]).double().numpy() / n


SETTINGS = [
    dict(),
    dict(temperature=0.7),
    dict(temperature=1.8),
    dict(temperature=0.0),
    dict(top_p=0.85),
    dict(top_p=0.3, temperature=1.5),
    dict(top_p=0.0),
    dict(top_k=1),
    dict(top_k=5, temperature=0.5),
    dict(top_k=64),
    dict(top_k=10**6),
    dict(min_p=0.1),
    dict(min_p=0.05, temperature=2.0, top_p=0.9),
    dict(top_p=0.9, top_k=20),
    dict(top_p=0.6, top_k=150),
    dict(top_p=0.95, top_k=200, min_p=1e-4, temperature=1.5),
    dict(top_p=0.7, temperature=2.0, untempered=True),
    dict(top_p=0.85, top_k=7, temperature=0.6, untempered=True),
]


@pytest.mark.parametrize("vocab_size", [7, 257, 1000])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_each_token_is_drawn_with_its_probability(vocab_size, settings, choose):
    logits = torch.randn(vocab_size) * 3
    got = inverse_cdf_support(choose, logits, **settings)
    want = expected_probabilities(
        logits, **{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "untempered": False} | settings
    )
    # A sweep of n points through the inverse of a distribution hits each token within one point of its share.
    assert np.abs(got - want).max() < 2 / 2001


def test_a_nearly_flat_row_is_drawn_right_in_the_last_round(choose):
    """The kept set is larger than the candidates of the first rounds, so the whole vocabulary is sorted."""
    logits = torch.randn(2000) * 0.01
    got = inverse_cdf_support(choose, logits, n=8001, top_p=0.9)
    want = expected_probabilities(logits, 1.0, 0.9, 0, 0.0, False)
    assert (got > 0).sum() > 1600
    assert np.abs(got - want).max() < 2 / 8001


def test_ties_with_the_last_token_of_the_nucleus_are_kept(choose):
    logits = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0, -1.0])
    got = inverse_cdf_support(choose, logits, top_p=0.5)
    assert (got > 0).tolist() == [True, True, True, True, False, False]


def test_greedy_takes_the_first_of_equal_logits(choose):
    logits = torch.zeros(3, 500)
    logits[0, [400, 77, 78]] = 3.0
    logits[2] = -1e30
    assert choose(logits, filters(3, temperature=0.0), torch.full((3,), 0.99, dtype=torch.float64)).tolist() == [
        77,
        0,
        0,
    ]


@pytest.mark.parametrize("value", [-torch.inf, torch.nan])
def test_a_row_without_a_token_to_sample_gives_end_of_text(choose, value):
    logits = torch.full((1, 100), value)
    for settings in (dict(), dict(temperature=0.0), dict(top_p=0.9), dict(top_k=3, min_p=0.1)):
        uniform = torch.full((1,), 0.7, dtype=torch.float64)
        assert choose(logits.clone(), filters(1, **settings), uniform).tolist() == [0]


def test_the_largest_uniform_number_draws_a_token_with_mass(choose):
    uniform = torch.full((1,), 1 - 2.0**-53, dtype=torch.float64)
    for seed in range(50):
        logits = torch.randn(1, 70, generator=torch.Generator().manual_seed(seed))
        logits[:, 31:] = -torch.inf
        assert choose(logits, filters(1), uniform).item() <= 30


def test_tiny_temperatures_are_greedy(choose):
    logits = torch.randn(1, 100)
    uniform = torch.full((1,), 0.5, dtype=torch.float64)
    assert choose(logits, filters(1, temperature=1e-39), uniform).item() == logits.argmax().item()


def test_banned_tokens_are_never_drawn(choose):
    logits = torch.randn(300)
    logits[::2] = -torch.inf
    for settings in (dict(), dict(top_p=0.99), dict(temperature=50.0, min_p=1e-9)):
        assert inverse_cdf_support(choose, logits, **settings)[::2].sum() == 0


@given(
    rows=st.lists(st.sampled_from(range(len(SETTINGS))), min_size=1, max_size=9),
    vocab_size=st.integers(2, 400),
    seed=st.integers(0, 2**16),
)
def test_a_row_does_not_depend_on_its_neighbors(rows, vocab_size, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), vocab_size, generator=generator) * 4
    uniform = torch.rand(len(rows), generator=generator, dtype=torch.float64)
    each = [filters(1, **SETTINGS[i]) for i in rows]
    together = object.__new__(Filters)
    together.__dict__.update({name: torch.cat([f.__dict__[name] for f in each]) for name in each[0].__dict__})
    drawn = select(logits.clone(), together, uniform).tolist()
    alone = [select(logits[i : i + 1].clone(), each[i], uniform[i : i + 1]).item() for i in range(len(rows))]
    assert drawn == alone
    if unavailable() is None:
        normalizer = logits.double().logsumexp(1)
        assert native.select(logits, together, uniform).tolist() == drawn
        assert native.select(logits, together, uniform, normalizer).tolist() == drawn
        assert select(logits, together, uniform, normalizer).tolist() == drawn
