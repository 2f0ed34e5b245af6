"""Trains the bundled demo model, a byte-level RWKV-7, on the source of Python's standard library.

python -m rwkv_batch.demo.train --out model.safetensors
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn

from .corpus import END_OF_TEXT, VOCAB_SIZE, Document, encode, stdlib_documents
from .network import CHUNK, HEAD_SIZE, LayerState, Network

RANKS = {"w": 32, "a": 32, "v": 16, "g": 64}
RESTART_PROBABILITY = 1 / 16
WARM_UP_STEPS = 60
DESCENT = 0.3
"""The share of all steps in which the learning rate falls to zero."""


class Windows:
    """Batches of windows of one token stream: a row continues after its last window, or restarts at a random place."""

    def __init__(self, stream: Tensor, rows: int, tokens: int, generator: torch.Generator) -> None:
        self.stream, self.rows, self.tokens, self.generator = stream, rows, tokens, generator
        self.position = torch.full((rows,), len(stream))

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs and targets, both [rows, tokens], and [rows] bool: the row restarted."""
        last_start = len(self.stream) - self.tokens - 1
        restart = torch.rand(self.rows, generator=self.generator) < RESTART_PROBABILITY
        restart |= self.position > last_start
        anywhere = torch.randint(last_start + 1, (self.rows,), generator=self.generator)
        self.position = torch.where(restart, anywhere, self.position)
        window = self.stream[self.position[:, None] + torch.arange(self.tokens + 1)]
        self.position = self.position + self.tokens
        return window[:, :-1], window[:, 1:], restart


def token_stream(documents: list[Document]) -> Tensor:
    """The documents in a random order, with an end-of-text token before each of them and after the last."""
    order = torch.randperm(len(documents)).tolist()
    token_ids = [END_OF_TEXT]
    for index in order:
        token_ids += [*encode(documents[index].text), END_OF_TEXT]
    return torch.tensor(token_ids)


def carried(state: list[LayerState], restart: Tensor) -> list[LayerState]:
    """The state for the next window: detached from the autograd graph, and zero in the rows that restart."""
    keep = (~restart).float()
    return [
        LayerState(*(field.detach().float() * keep.view(-1, *[1] * (field.dim() - 1)) for field in layer))
        for layer in state
    ]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, a plateau, and a linear descent to zero over the last part of the run."""
    warm_up = (step + 1) / WARM_UP_STEPS
    descent = (steps - step) / (steps * DESCENT)
    return peak * min(warm_up, 1.0, descent)


def make_optimizers(network: Network, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, scaled so that AdamW's learning rate fits it; AdamW for all other tensors.

    Vectors have no weight decay. For the same loss, Muon needs about two thirds of the steps that AdamW needs, and each
    takes a quarter more time.
    """
    hidden: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if name in ("emb.weight", "head.weight"):
            continue
        is_matrix = parameter.dim() == 2 and not name.endswith("r_k")  # r_k is a vector in the shape [H, N]
        (hidden if is_matrix else vectors).append(parameter)
    muon = torch.optim.Muon(hidden, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    groups = [
        {"params": [network.emb.weight, network.head.weight], "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-12)]


def average_gradients(network: Network) -> None:
    """Replace all gradients by their means over the processes, with one all-reduce."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def bits_per_byte(network: Network, stream: Tensor, rows: int = 16, tokens: int = 256) -> float:
    """The mean loss of a stream in bits. The stream is cut into equal rows, which start with an empty state."""
    length = (len(stream) - 1) // rows // tokens * tokens
    starts = torch.arange(rows)[:, None] * length
    state, nats = network.empty_state(rows), 0.0
    for start in range(0, length, tokens):
        window = stream[starts + start + torch.arange(tokens + 1)]
        with torch.autocast("cpu", torch.bfloat16):
            logits, state = network(window[:, :-1], state)
        nats += F.cross_entropy(logits.float().mT, window[:, 1:], reduction="sum").item()
    return nats / math.log(2) / (rows * length)


def train(rank: int, args: argparse.Namespace, rendezvous: str) -> None:
    """A worker process of `args.processes`: the same network and stream, other rows, averaged gradients.

    Worker 0 prints progress and saves the model.
    """
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=args.processes)
    torch.manual_seed(args.seed)
    documents = stdlib_documents()
    stream = token_stream([document for document in documents if not document.held_out])
    network = Network(VOCAB_SIZE, args.layers, args.width, 4 * args.width, RANKS)
    optimizers = make_optimizers(network, args.weight_decay)
    rows = args.rows // args.processes
    windows = Windows(stream, rows, args.tokens, torch.Generator().manual_seed(args.seed + 1 + rank))
    state = network.empty_state(rows)
    if rank == 0:
        parameters = sum(p.numel() for p in network.parameters())
        print(f"{len(stream)} training tokens, {parameters} parameters", flush=True)

    began, recent = time.monotonic(), 0.0
    for step in range(args.steps):
        inputs, targets, restart = windows.next()
        with torch.autocast("cpu", torch.bfloat16):
            logits, state = network(inputs, carried(state, restart))
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        network.zero_grad()
        torch.autograd.backward(loss)
        average_gradients(network)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0, error_if_nonfinite=True)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.learning_rate)
            optimizer.step()

        recent += loss.item() / math.log(2) / args.log_every
        if (step + 1) % args.log_every == 0:
            seconds = time.monotonic() - began
            speed = (step + 1) * args.rows * args.tokens / seconds
            line = f"step {step + 1:6d}  {recent:.4f} bits/byte  {seconds:6.0f} s  {speed:6.0f} tokens/s"
            if rank == 0:
                print(line, flush=True)
            recent = 0.0

    if rank == 0:
        save(network, args.out)
        held_out = token_stream([document for document in documents if document.held_out])
        print(f"held-out, weights as saved: {bits_per_byte(network, held_out):.4f} bits/byte", flush=True)
    distributed.destroy_process_group()


def save(network: Network, path: Path) -> None:
    """Write the weights as bfloat16 safetensors, and load them back, so that the network has the values of the file."""
    tensors = {name: tensor.detach().to(torch.bfloat16) for name, tensor in network.state_dict().items()}
    save_file(tensors, path)
    network.load_state_dict(tensors)
    print(f"{path}: {path.stat().st_size} bytes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("model.safetensors"))
    parser.add_argument("--steps", type=int, default=2250)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=192, help="channels, a multiple of 64")
    parser.add_argument("--rows", type=int, default=8, help="rows of a step, over all processes")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a row in one step, a multiple of 16")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="one thread each; a divisor of --rows")
    parser.add_argument("--log-every", type=int, default=50)
    args = parser.parse_args()
    if args.rows % args.processes:
        parser.error(f"--rows {args.rows} cannot be shared equally by --processes {args.processes}: choose a multiple")
    if args.tokens % CHUNK:
        parser.error(f"--tokens {args.tokens} is not a multiple of {CHUNK}")
    if args.width % HEAD_SIZE:
        parser.error(f"--width {args.width} is not a multiple of the head size {HEAD_SIZE}")
    with tempfile.TemporaryDirectory() as folder:
        spawn(train, (args, f"{folder}/rendezvous"), nprocs=args.processes)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
