"""The demo's training code, its data files and the shipped weights."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from rwkv_batch import demo
from rwkv_batch.demo.corpus import END_OF_TEXT, VOCAB_SIZE, Document, decode, encode, stdlib_documents
from rwkv_batch.demo.network import LOG_DECAY_FLOOR, Network, wkv7
from rwkv_batch.demo.prompts import functions, score_questions
from rwkv_batch.demo.train import RANKS, Windows, bits_per_byte, learning_rate, token_stream

MODEL = Path(demo.__file__).with_name("model.safetensors")
DATA = Path(__file__).parents[1] / "jobs" / "data"


def token_by_token(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    y = []
    for t in range(r.shape[1]):
        removed = torch.einsum("bhk,bhkv->bhv", a[:, t], state)
        state = log_w[:, t].exp()[..., None] * state
        state = state + b[:, t, :, :, None] * removed[..., None, :] + k[:, t, :, :, None] * v[:, t, :, None, :]
        y.append(torch.einsum("bhk,bhkv->bhv", r[:, t], state))
    return torch.stack(y, 1), state


def test_chunks_of_the_recurrence_equal_single_tokens() -> None:
    torch.manual_seed(0)
    r, k, v, direction, raw = (torch.randn(2, 48, 3, 64, dtype=torch.float64) for _ in range(5))
    removal = torch.nn.functional.normalize(direction, dim=-1)
    log_w = LOG_DECAY_FLOOR * torch.sigmoid(4 * raw)
    inputs = r, log_w, k, v, -removal, removal * torch.rand_like(r)
    state = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for got, expected in zip(wkv7(*inputs, state), token_by_token(*inputs, state), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_a_carried_state_continues_the_sequence() -> None:
    torch.manual_seed(0)
    network = Network(VOCAB_SIZE, layers=2, width=64, hidden=128, ranks=RANKS)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    token_ids = torch.randint(VOCAB_SIZE, (2, 64))
    whole, _ = network(token_ids, network.empty_state(2))
    first, state = network(token_ids[:, :32], network.empty_state(2))
    second, _ = network(token_ids[:, 32:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-3, atol=1e-4)


def test_windows_continue_where_they_ended_unless_they_restart() -> None:
    stream = torch.arange(1000)
    windows = Windows(stream, rows=4, tokens=16, generator=torch.Generator().manual_seed(0))
    inputs, targets, restart = windows.next()
    assert restart.all()
    restarts = 0
    for _ in range(200):
        expected = inputs[:, -1] + 1
        inputs, targets, restart = windows.next()
        assert torch.equal(inputs + 1, targets)
        assert torch.equal(inputs[~restart, 0], expected[~restart])
        restarts += int(restart.sum())
    assert 0 < restarts < 400


def test_learning_rate_rises_stays_and_falls_to_almost_nothing() -> None:
    rates = [learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] < 0.05
    assert rates[100] == rates[600] == 1.0
    assert 0 < rates[-1] < 0.01


def test_bytes_survive_and_the_split_depends_on_the_path_alone() -> None:
    text = 'def naïve():\n    """∀x"""\n'
    assert decode([*encode(text), END_OF_TEXT]) == text
    assert decode([0xFF + 1]) == "\N{REPLACEMENT CHARACTER}"
    assert [Document(path, "").held_out for path in ("enum.py", "http/client.py", "json/decoder.py")] == [
        True,
        True,
        False,
    ]


def test_questions_have_one_true_next_line() -> None:
    documents = [document for document in stdlib_documents() if document.held_out]
    by_path = {document.path: document.text.splitlines(keepends=True) for document in documents}
    for question in score_questions(documents).to_pylist():
        path, number = question["id"].rsplit(":", 1)
        lines = by_path[path]
        assert question["choices"][question["answer"]] == lines[int(number) - 1]
        assert question["context"].endswith(lines[int(number) - 2])
        assert len(set(question["choices"])) == 4


def test_functions_are_complete_and_their_order_is_scattered() -> None:
    text = "".join(f"def f{i}(x):\n    a = x\n    b = a\n    return b\n\n" for i in range(9))
    found = functions([Document("m.py", text)])
    assert {"".join(function.lines) for function in found} == {part + "\n" for part in text.split("\n\n") if part}
    assert [function.line for function in found] != sorted(function.line for function in found)


def test_shipped_data_is_small_and_has_its_columns() -> None:
    columns = {
        "demo_prompts": (100, ["id", "prompt"]),
        "eval_prompts": (200, ["id", "prompt", "source", "temperature", "reference"]),
        "score_questions": (200, ["id", "context", "choices", "answer"]),
    }
    for name, (rows, names) in columns.items():
        table = pq.read_table(DATA / f"{name}.parquet")
        assert (table.num_rows, table.column_names) == (rows, names)
        assert len(set(table["id"].to_pylist())) == rows
    assert pq.read_table(DATA / "eval_prompts.parquet")["temperature"].null_count == 100
    assert sum(file.stat().st_size for file in DATA.glob("*.parquet")) < 300_000


def test_shipped_weights_know_python() -> None:
    tensors = load_file(MODEL)
    assert MODEL.stat().st_size <= 8_000_000
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    hidden, width = tensors["blocks.0.ffn.key.weight"].shape
    network = Network(VOCAB_SIZE, layers, width, hidden, RANKS)
    network.load_state_dict(tensors)
    torch.manual_seed(0)
    held_out = token_stream([document for document in stdlib_documents() if document.path == "http/client.py"])
    assert bits_per_byte(network, held_out[: 4 * 4096 + 1], rows=4) < 2.0
