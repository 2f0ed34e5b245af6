"""The `rwkv` package and the float64 reference agree, so either can judge other code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint
from float64_reference import Float64Model
from oracle import Oracle, OracleError, canonical_state, convert
from tolerances import assert_close
from torch import Tensor
from versions import in_package

PROMPT = [5, 17, 0, 96, 33, 33, 8, 61, 2]
OTHER = [40, 3, 77, 12, 90, 1, 1, 54, 29]
MORE = [11, 96, 4]

OracleFactory = Callable[..., Oracle]
CheckpointFile = Callable[..., Path]


def assert_states_close(version: str, flat_list: list[Tensor], expected: dict[str, Tensor], row: int = 0) -> None:
    got = canonical_state(version, flat_list)
    assert got.keys() == expected.keys()
    for name, field in expected.items():
        assert_close(f"v{version} {name}", got[name], field[:, row], "float32")


@pytest.mark.parametrize("version", in_package())
def test_a_whole_sequence_and_single_tokens_after_it(version: str, oracle: OracleFactory) -> None:
    reference = Float64Model(version, make_checkpoint(version))
    # The batch has another row, so that a leak from row to row is found.
    expected, expected_state = reference.sequence([OTHER, PROMPT])
    logits, state = oracle(version).forward(PROMPT, full_output=True)
    assert_close(f"v{version} logits", logits, expected[1], "float32")
    assert_states_close(version, state, expected_state, row=1)

    for token in MORE:
        expected, expected_state = reference.step(torch.tensor([token, token]), expected_state)
        logits, state = oracle(version).forward([token], state)
        assert_close(f"v{version} logits of one token", logits, expected[1], "float32")
    assert_states_close(version, state, expected_state, row=1)


@pytest.mark.parametrize("version", in_package())
def test_single_tokens_from_a_fresh_state(version: str, oracle: OracleFactory) -> None:
    reference = Float64Model(version, make_checkpoint(version))
    expected_state, state = reference.initial_state(1), None
    for token in PROMPT:
        expected, expected_state = reference.step(torch.tensor([token]), expected_state)
        logits, state = oracle(version).forward([token], state)
        assert_close(f"v{version} logits", logits, expected[0], "float32")
        assert_states_close(version, state, expected_state)


@pytest.mark.parametrize("version", ["5.0", "5.1", "5.2", "6.0", "7.0"])
def test_rows_of_wkv_are_key_channels(version: str, oracle: OracleFactory) -> None:
    """After one token the state is k^T v, so each row is a multiple of v. No shape shows a transpose."""
    weights = {name.removeprefix("blocks.0."): tensor for name, tensor in make_checkpoint(version).items()}
    token = PROMPT[0]
    x = weights["emb.weight"][token]
    for name in ("ln0", "ln1"):
        x = torch.layer_norm(x, x.shape, weights[f"{name}.weight"], weights[f"{name}.bias"])
    if version in ("6.0", "7.0"):
        share = 1 - weights["att.x_v" if version == "7.0" else "att.time_maa_v"].flatten()
    else:
        share = weights["att.time_mix_v"].flatten()
    if version == "6.0":
        probe = torch.tanh((x - x * weights["att.time_maa_x"].flatten()) @ weights["att.time_maa_w1"])
        share = share - probe.view(5, -1)[2] @ weights["att.time_maa_w2"][2]
    v = (weights["att.value.weight"] @ (x * share)).view(2, 64)

    wkv = canonical_state(version, oracle(version).forward([token])[1])["wkv"][0]  # [H, K, V]
    direction = v / v.norm(dim=-1, keepdim=True)
    along = torch.einsum("hkv,hv->hk", wkv, direction)
    assert_close("rows of wkv", along[..., None] * direction[:, None], wkv, "float32")


@pytest.mark.parametrize("version", ["5.2", "6.0"])
def test_time_state_is_the_first_state(version: str, oracle: OracleFactory, tmp_path: Path) -> None:
    tensors = make_checkpoint(version)
    for i in range(3):
        tensors[f"blocks.{i}.att.time_state"] = torch.randn(2, 64, 64)
    logits, state = oracle(version, write_checkpoint(tensors, tmp_path / "tuned.pth")).forward(PROMPT)
    expected, expected_state = Float64Model(version, tensors).sequence([OTHER, PROMPT])
    assert_close("logits", logits, expected[1, -1], "float32")
    assert_states_close(version, state, expected_state, row=1)


def test_v4_of_another_attention_width(oracle: OracleFactory, tmp_path: Path) -> None:
    tensors = make_checkpoint("4", n_att=192)
    model = oracle("4", write_checkpoint(tensors, tmp_path / "wide.pth"))
    expected, expected_state = Float64Model("4", tensors).sequence([PROMPT])
    state = None
    for token in PROMPT:
        logits, state = model.forward([token], state)
    assert state is not None
    assert_close("logits", logits, expected[0, -1], "float32")
    assert_states_close("4", state, expected_state)


def without_second_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut a checkpoint of two heads to an attention width of one, and silence the second head in `tensors` itself."""
    narrow = dict(tensors)
    for name, tensor in tensors.items():
        part = name.split(".", 3)[-1]
        if part == "output.weight":
            tensor[:, 64:] = 0
            narrow[name] = tensor[:, :64]
        elif part.startswith(("receptance.", "key.", "value.", "gate.", "ln_x.")) and ".att." in name:
            narrow[name] = tensor[:64]
        elif part == "time_decay" and tensor.dim() == 3:
            narrow[name] = tensor[..., :64]
        elif part in ("time_decay", "time_first", "time_faaaa"):
            narrow[name] = tensor[:1]
        elif part == "time_decay_w2":
            narrow[name] = tensor[:, :64]
    return narrow


@pytest.mark.parametrize("version", ["5.0", "5.1", "5.2", "6.0"])
def test_reference_of_another_attention_width(version: str, oracle: OracleFactory, tmp_path: Path) -> None:
    """The package runs v5 and v6 at the model's width only, where a silent head is the same as none."""
    tensors = make_checkpoint(version)
    narrow = without_second_head(tensors)
    logits, state = oracle(version, write_checkpoint(tensors, tmp_path / "silent.pth")).forward(PROMPT)
    expected, expected_state = Float64Model(version, narrow).sequence([PROMPT])
    assert_close("logits", logits, expected[0, -1], "float32")
    got = canonical_state(version, state)["wkv"][:, :1]
    assert_close("wkv", got, expected_state["wkv"][:, 0], "float32")


def test_ln_x_eps_reaches_the_reference() -> None:
    tensors = make_checkpoint("5.2")
    usual, _ = Float64Model("5.2", tensors).sequence([PROMPT])
    other, _ = Float64Model("5.2", tensors, ln_x_eps=1e-1).sequence([PROMPT])
    assert (usual - other).abs().max() > 1e-3


@pytest.mark.parametrize("version", ["4", "6.0", "7.0"])
def test_forward_leaves_the_given_state_alone(version: str, oracle: OracleFactory) -> None:
    _, state = oracle(version).forward(PROMPT)
    before = [tensor.clone() for tensor in state]
    first, _ = oracle(version).forward(MORE, state)
    again, _ = oracle(version).forward(MORE, state)
    assert torch.equal(first, again)
    assert all(torch.equal(was, now) for was, now in zip(before, state, strict=True))


@pytest.mark.parametrize("version", ["4", "7.0"])
def test_logits_have_one_shape_whatever_the_length(version: str, oracle: OracleFactory) -> None:
    assert oracle(version).forward([7], full_output=True)[0].shape == (1, 97)
    assert oracle(version).forward([7], full_output=False)[0].shape == (97,)
    assert oracle(version).forward([7, 8], full_output=True)[0].shape == (2, 97)
    assert oracle(version).forward([7, 8], full_output=False)[0].shape == (97,)


@pytest.mark.parametrize("version", ["5.2", "7.0"])
def test_loglikelihood(version: str, oracle: OracleFactory) -> None:
    reference = Float64Model(version, make_checkpoint(version))
    greedy, context = [], list(PROMPT)
    for _ in MORE:
        greedy.append(int(reference.sequence([context])[0][0, -1].argmax()))
        context.append(greedy[-1])
    for continuation, is_likeliest in ((greedy, True), ([*greedy[:-1], (greedy[-1] + 1) % 97], False)):
        logits, _ = reference.sequence([PROMPT + continuation])
        logprobs = logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        expected = [logprobs[i, token].item() for i, token in enumerate(continuation)]
        total, each, is_greedy = oracle(version).loglikelihood(PROMPT, continuation)
        assert each == pytest.approx(expected, abs=1e-4)
        assert total == pytest.approx(sum(expected), abs=1e-4)
        assert is_greedy is is_likeliest


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1.0, "top_p": 1.0}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 1.0, "top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 3}, [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
        # top_p sees the probabilities before the temperature, or 0.6 would keep the first token alone.
        ({"temperature": 0.5, "top_p": 0.6}, [0.8, 0.2, 0, 0]),
        ({"temperature": 0.0, "top_p": 0.9}, [1, 0, 0, 0]),
    ],
)
def test_sample(settings: dict[str, Any], expected: list[float], oracle: OracleFactory) -> None:
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log() + 3
    assert_close("probabilities", oracle("4").sample(logits, **settings), torch.tensor(expected), "float32")


@pytest.mark.parametrize("version", ["4", "6.0"])
def test_a_converted_file_is_the_model(
    version: str, oracle: OracleFactory, checkpoint_file: CheckpointFile, tmp_path: Path
) -> None:
    strategy = "cpu fp32i8"
    convert(checkpoint_file(version), strategy, tmp_path / "converted.pth")
    _, state = oracle(version).forward(PROMPT)
    converted, _ = oracle(version, tmp_path / "converted.pth", strategy).forward(MORE, state)
    directly, _ = oracle(version, strategy=strategy).forward(MORE, state)
    assert torch.equal(converted, directly)
    assert not torch.equal(converted, oracle(version).forward(MORE, state)[0])


def test_v7_models_of_two_dtypes_share_a_worker(oracle: OracleFactory, checkpoint_file: CheckpointFile) -> None:
    rough = oracle("7.0", strategy="cpu bf16")
    oracle("7.0", checkpoint_file("7.0", seed=1))  # Loaded later: the global dtype of the package is now float32.
    logits, state = rough.forward(PROMPT)
    assert logits.dtype == torch.float32
    assert state[0].dtype == torch.bfloat16


def test_a_refusal_is_reported_and_the_worker_goes_on(oracle: OracleFactory, checkpoint_file: CheckpointFile) -> None:
    expected, _ = oracle("6.0").forward(PROMPT)
    with pytest.raises(OracleError, match="IndexError"):
        oracle("6.0").forward([97])
    with pytest.raises(OracleError, match=r"found version 6\.0, expected 5\.2"):
        oracle("5.2", checkpoint_file("6.0"))
    assert torch.equal(oracle("6.0").forward(PROMPT)[0], expected)


def test_the_package_is_not_in_this_process() -> None:
    with pytest.raises(ImportError):
        importlib.import_module("rwkv.model")
    assert sys.modules["rwkv.model"] is None
