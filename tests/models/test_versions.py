"""Every version against the `rwkv` package and the float64 reference: logits and states, however tokens are fed."""

from __future__ import annotations

import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint
from float64_reference import Float64Model
from oracle import canonical_state
from running import Session
from tolerances import TOLERANCES, assert_close
from versions import VARIANTS, VERSIONS, in_package

from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.errors import CheckpointError

VOCAB = 97
MODEL_FACTOR = 20
"""Rounding error of a whole model, 3 layers of about a dozen operations, as a multiple of one operation's."""


def tokens(n: int, seed: int = 0) -> list[int]:
    return torch.randint(0, VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_states(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    for name, expected in want.items():
        assert_close(name, got[name].float(), expected.reshape(got[name].shape), "float32", MODEL_FACTOR)


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    if request.param == "cpu":
        if reason := unavailable():
            pytest.skip(f"native kernels: {reason}")
        if request.param not in VARIANTS[request.getfixturevalue("version")].kernels:
            pytest.skip("this version has no native kernel")
    return request.param


@pytest.mark.parametrize("version", in_package())
def test_equals_the_rwkv_package(version, backend, oracle, checkpoint_file):
    ids = tokens(13)
    want, state = oracle(version).forward(ids, full_output=True)
    session = Session(checkpoint_file(version), backend=backend)
    whole = session.feed({3: ids})[3]
    assert_close("logits of the whole prompt", whole, want, "float32", MODEL_FACTOR)
    assert_states(session.state(3), canonical_state(version, state))
    following, _ = oracle(version).forward([5], state)
    assert_close("logits after one more token", session.feed({3: [5]})[3][0], following, "float32", MODEL_FACTOR)


@pytest.mark.parametrize("version", VERSIONS)
def test_results_do_not_depend_on_chunks_or_neighbors(version, backend, checkpoint_file):
    """Three sequences of different lengths, in shuffled slots; prompt chunks beside decode rows and padding."""
    path = checkpoint_file(version)
    reference = Float64Model(version, torch.load(path))
    sequences = {4: tokens(17, 1), 0: tokens(9, 2), 2: tokens(12, 3)}
    session = Session(path, backend=backend)
    untouched = {slot: session.state(slot) for slot in (1, 3)}
    got = {slot: [] for slot in sequences}
    done = dict.fromkeys(sequences, 0)
    for lengths in ({4: 3, 0: 1}, {2: 5, 4: 1, 0: 1}, {0: 6, 2: 1}, {4: 13, -1: 2, 2: 6, 0: 1}):
        step = {}
        for slot, length in lengths.items():
            step[slot] = [1] * length if slot < 0 else sequences[slot][done[slot] : done[slot] + length]
        for slot, logits in session.feed(step).items():
            if slot >= 0:
                got[slot].append(logits)
                done[slot] += lengths[slot]
    for slot, ids in sequences.items():
        state = reference.initial_state(1)
        want = []
        for token_id in ids:
            logits, state = reference.step(torch.tensor([token_id]), state)
            want.append(logits[0])
        assert_close(f"slot {slot}", torch.cat(got[slot]), torch.stack(want), "float32", MODEL_FACTOR)
        assert_states(session.state(slot), {name: value[:, 0] for name, value in state.items()})
    for slot, before in untouched.items():
        assert all(torch.equal(value, before[name]) for name, value in session.state(slot).items())


@pytest.mark.parametrize("version", [name for name, variant in VARIANTS.items() if variant.has_own_width])
def test_attention_narrower_than_the_model(version, backend, checkpoint_file):
    path = checkpoint_file(version, n_embd=128, n_att=96, head_size=32, n_ffn=80, vocab=53, n_layer=2)
    ids = [i % 53 for i in tokens(8)]
    reference = Float64Model(version, torch.load(path))
    state = reference.initial_state(1)
    for token_id in ids:
        want, state = reference.step(torch.tensor([token_id]), state)
    got = Session(path, backend=backend).feed({0: ids})[0][-1]
    assert_close("logits", got, want[0], "float32", MODEL_FACTOR)


def test_ln_x_eps_overrides_the_default(checkpoint_file):
    path = checkpoint_file("7.0", head_size=16)
    ids = tokens(8)
    results = {}
    for eps in (64e-5, 1e-5, 0.3):
        reference = Float64Model("7.0", torch.load(path), ln_x_eps=eps)
        state = reference.initial_state(1)
        for token_id in ids:
            want, state = reference.step(torch.tensor([token_id]), state)
        results[eps] = Session(path, ln_x_eps=eps).feed({0: ids})[0][-1]
        assert_close(f"eps {eps}", results[eps], want[0], "float32", MODEL_FACTOR)
    assert torch.equal(results[64e-5], Session(path).feed({0: ids})[0][-1])
    assert not torch.allclose(results[64e-5], results[0.3], atol=1e-3)


@pytest.mark.parametrize("version", ["5.1", "5.2", "6.0"])
def test_time_state_starts_every_sequence(version, oracle, tmp_path):
    """Checkpoints store the state transposed. Heads are square, so only numbers show a missing transposition."""
    tensors = make_checkpoint(version)
    for i in range(3):
        tensors[f"blocks.{i}.att.time_state"] = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(i))
    path = write_checkpoint(tensors, tmp_path / "tuned.pth")
    want, _ = oracle(version, path).forward(tokens(5), full_output=True)
    assert_close("logits", Session(path).feed({2: tokens(5)})[2], want, "float32", MODEL_FACTOR)


def test_a_state_file_starts_every_sequence(checkpoint_file, tmp_path):
    tensors = make_checkpoint("6.0")
    states = {f"blocks.{i}.att.time_state": torch.randn(2, 64, 64) for i in range(3)}
    write_checkpoint(tensors | states, tmp_path / "inside.pth")
    torch.save(states, tmp_path / "state.pth")
    inside = Session(tmp_path / "inside.pth").feed({0: tokens(5)})[0]
    beside = Session(checkpoint_file("6.0"), init_state=tmp_path / "state.pth").feed({0: tokens(5)})[0]
    assert torch.equal(inside, beside)


def test_a_tuned_v7_state_is_stored_as_the_rwkv_package_keeps_it(oracle, checkpoint_file, tmp_path):
    states = [torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    torch.save({f"blocks.{i}.att.time_state": state for i, state in enumerate(states)}, tmp_path / "state.pth")
    flat = [tensor for state in states for tensor in (torch.zeros(128), state, torch.zeros(128))]
    want, _ = oracle("7.0").forward(tokens(5), flat, full_output=True)
    got = Session(checkpoint_file("7.0"), init_state=tmp_path / "state.pth").feed({1: tokens(5)})[1]
    assert_close("logits", got, want, "float32", MODEL_FACTOR)


def test_states_in_some_layers_only_are_refused(tmp_path):
    tensors = make_checkpoint("6.0") | {"blocks.1.att.time_state": torch.zeros(2, 64, 64)}
    path = write_checkpoint(tensors, tmp_path / "partial.pth")
    with pytest.raises(CheckpointError, match=r"holds 1 of 3 tensors blocks\.N\.att\.time_state"):
        Session(path)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(version, dtype, backend, checkpoint_file):
    """Random models amplify rounding errors differently at each position, so the mean error is limited."""
    path = checkpoint_file(version)
    ids = tokens(10)
    exact = Session(path).feed({0: ids})[0]
    session = Session(path, dtype=dtype, backend=backend)
    got = session.feed({0: ids})[0]
    assert session.state(0)["ffn_shift"].dtype == getattr(torch, dtype)
    assert (got - exact).pow(2).mean().sqrt() < MODEL_FACTOR * TOLERANCES[dtype] * exact.std()


@pytest.mark.parametrize("version", ["4", "5.2", "6.0"])
def test_float16_rescales_deep_layers(version, tmp_path):
    """The residual stream would overflow float16 without the halving every six layers."""
    tensors = make_checkpoint(version, n_layer=14)
    for i in range(14):
        tensors[f"blocks.{i}.ffn.value.weight"] *= 9000
    path = write_checkpoint(tensors, tmp_path / "large.pth")
    exact = Session(path).feed({0: tokens(4)})[0]
    got = Session(path, dtype="float16").feed({0: tokens(4)})[0]
    assert torch.isfinite(got).all()
    assert_close("logits", got, exact, "float16", 40)


@pytest.mark.parametrize("version", VERSIONS)
def test_int8_stays_near(version, checkpoint_file):
    path = checkpoint_file(version)
    ids = tokens(10)
    exact = Session(path).feed({0: ids})[0]
    got = Session(path, quantization="int8").feed({0: ids})[0]
    assert (got - exact).pow(2).mean().sqrt() < 0.2 * exact.std()
    assert not torch.equal(got, exact)


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("version", VERSIONS)
def test_batch_invariant_rows_are_bit_identical(version, dtype, quantization, backend, checkpoint_file):
    path = checkpoint_file(version)
    settings = dict(dtype=dtype, quantization=quantization, batch_invariant=True, num_slots=40, backend=backend)
    ids = tokens(12)
    alone = Session(path, **settings)
    want = torch.cat([alone.feed({7: [token_id]})[7] for token_id in ids])
    for company in (1, 3, 36):
        session = Session(path, **settings)
        slots = [slot for slot in range(40) if slot != 7][:company]
        first = session.feed({**{slot: tokens(1 + slot % 4, slot) for slot in slots}, 7: ids[:5]})[7]
        second = session.feed({7: ids[5:], **{slot: [slot] for slot in slots}})[7]
        assert torch.equal(torch.cat([first, second]), want)


def test_int8_weights_take_half_of_bfloat16(checkpoint_file):
    path = checkpoint_file("7.0", n_embd=512, n_ffn=2048, n_layer=2, vocab=2048)
    sizes = {q: Session(path, dtype="bfloat16", quantization=q).model.matrix_bytes for q in (None, "int8")}
    assert sizes["int8"] <= 0.55 * sizes[None]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.inference_mode()
def test_logits_are_the_same_wherever_they_are_written(checkpoint_file, dtype):
    """The logits belong to the caller: writing to them does not change the next step's."""
    model = Session(checkpoint_file("7.0"), dtype=dtype).model
    hidden = torch.randn(3, model.sizes["C"]).to(model.placement.dtype)
    kept = torch.full((3, model.sizes["V"]), torch.nan)
    want = model.logits(hidden)
    for _ in range(2):
        logits = model.logits(hidden, out=kept)
        assert logits.dtype == torch.float32
        assert torch.equal(logits, want)
        logits.fill_(7.0)
