"""Train the bundled demo model: a byte-level RWKV-7 on the Python standard library's own source.

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
from torch import Tensor, distributed

from .corpus import END_OF_TEXT, VOCAB_SIZE, Document, encode, stdlib_documents
from .network import LayerState, Network

RANKS = {"w": 32, "a": 32, "v": 16, "g": 64}
RESTART_PROBABILITY = 1 / 16
WARM_UP_STEPS = 100
DESCENT = 0.3  # of all steps


class Windows:
    """Batches of consecutive windows: each row goes on where it was, or sometimes restarts anywhere."""

    def __init__(self, stream: Tensor, rows: int, tokens: int, generator: torch.Generator) -> None:
        self.stream, self.rows, self.tokens, self.generator = stream, rows, tokens, generator
        self.position = torch.full((rows,), len(stream))

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs and targets, both [rows, tokens], and which rows restarted, [rows] bool."""
        last_start = len(self.stream) - self.tokens - 1
        restart = torch.rand(self.rows, generator=self.generator) < RESTART_PROBABILITY
        restart |= self.position > last_start
        anywhere = torch.randint(last_start + 1, (self.rows,), generator=self.generator)
        self.position = torch.where(restart, anywhere, self.position)
        window = self.stream[self.position[:, None] + torch.arange(self.tokens + 1)]
        self.position = self.position + self.tokens
        return window[:, :-1], window[:, 1:], restart


def training_stream(documents: list[Document]) -> Tensor:
    """All training documents in a shuffled order, an end-of-text token before each and after the last."""
    order = torch.randperm(len(documents)).tolist()
    token_ids = [END_OF_TEXT]
    for index in order:
        token_ids += [*encode(documents[index].text), END_OF_TEXT]
    return torch.tensor(token_ids)


def carried(state: list[LayerState], restart: Tensor) -> list[LayerState]:
    """The state for the next window: cut from the graph, and zero in the rows that restart."""
    keep = (~restart).float()
    return [
        LayerState(*(field.detach().float() * keep.view(-1, *[1] * (field.dim() - 1)) for field in layer))
        for layer in state
    ]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, a plateau, and a straight descent to zero over the last part of the run."""
    warm_up = (step + 1) / WARM_UP_STEPS
    descent = (steps - step) / (steps * DESCENT)
    return peak * min(warm_up, 1.0, descent)


def make_optimizer(network: Network, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only: vectors are offsets and scales with a meaning of their own."""
    matrices = [p for p in network.parameters() if p.squeeze().dim() == 2]
    vectors = [p for p in network.parameters() if p.squeeze().dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-12)


def average_gradients(network: Network) -> None:
    """Replace every gradient by its mean over the processes, in one message."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def held_out_bits_per_byte(network: Network, documents: list[Document], rows: int = 16, tokens: int = 512) -> float:
    """Bits per byte over whole files, state carried from the first byte to the last; end of text is predicted too."""
    texts = sorted((encode(document.text) for document in documents), key=len)
    nats = 0.0
    for first in range(0, len(texts), rows):
        group = texts[first : first + rows]
        columns = math.ceil((len(group[-1]) + 1) / tokens) * tokens
        padded = torch.full((len(group), columns + 1), END_OF_TEXT)
        counted = torch.zeros(len(group), columns)
        for row, text in enumerate(group):
            padded[row, 1 : len(text) + 1] = torch.tensor(text)
            counted[row, : len(text) + 1] = 1
        state = network.empty_state(len(group))
        for start in range(0, columns, tokens):
            window = padded[:, start : start + tokens + 1]
            with torch.autocast("cpu", torch.bfloat16):
                logits, state = network(window[:, :-1], state)
            loss = F.cross_entropy(logits.float().mT, window[:, 1:], reduction="none")
            nats += (loss * counted[:, start : start + tokens]).sum().item()
    return nats / math.log(2) / sum(map(len, texts))


def train(rank: int, args: argparse.Namespace, rendezvous: str) -> None:
    """One of `args.processes` equal workers: same network and data, own rows, averaged gradients; worker 0 reports."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=args.processes)
    torch.manual_seed(args.seed)
    documents = stdlib_documents()
    stream = training_stream([document for document in documents if not document.held_out])
    network = Network(VOCAB_SIZE, args.layers, args.width, 4 * args.width, RANKS)
    optimizer = make_optimizer(network, args.weight_decay)
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
        loss.backward()
        average_gradients(network)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, error_if_nonfinite=True)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.learning_rate)
        optimizer.step()

        recent += loss.item() / math.log(2) / args.log_every
        if rank == 0 and (step + 1) % args.log_every == 0:
            seconds = time.monotonic() - began
            speed = (step + 1) * args.rows * args.tokens / seconds
            print(f"step {step + 1:6d}  {recent:.4f} bits/byte  {seconds:6.0f} s  {speed:6.0f} tokens/s", flush=True)
            recent = 0.0
        elif (step + 1) % args.log_every == 0:
            recent = 0.0

    if rank == 0:
        tensors = {name: tensor.detach().to(torch.bfloat16) for name, tensor in network.state_dict().items()}
        save_file(tensors, args.out, metadata={"format": "pt"})
        network.load_state_dict(tensors)
        bits = held_out_bits_per_byte(network, [document for document in documents if document.held_out])
        print(f"held-out, whole files, weights as saved: {bits:.4f} bits/byte", flush=True)
        print(f"{args.out}: {args.out.stat().st_size} bytes", flush=True)
    distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("model.safetensors"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=192, help="channels, a multiple of 64")
    parser.add_argument("--rows", type=int, default=8, help="rows of a step, over all processes")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a row in one step, a multiple of 16")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="one thread each; a divisor of --rows")
    parser.add_argument("--log-every", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, (args, f"{folder}/rendezvous"), nprocs=args.processes)


if __name__ == "__main__":
    main()
