"""Train the bundled demo model: a byte-level RWKV-7 on the Python standard library's own source.

    python -m rwkv_batch.demo.train --out model.safetensors
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from .corpus import END_OF_TEXT, VOCAB_SIZE, Document, encode, stdlib_documents
from .network import LayerState, Network

RANKS = {"w": 32, "a": 32, "v": 16, "g": 64}
RESTART_PROBABILITY = 1 / 16
WARM_UP_STEPS = 100
FINAL_LEARNING_RATE = 0.02  # of the peak


class Windows:
    """Batches of consecutive windows: each row goes on where it was, or now and then restarts anywhere, empty-minded."""

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


def training_stream(documents: list[Document], generator: torch.Generator) -> Tensor:
    """All training documents in a shuffled order, an end-of-text token before each and after the last."""
    order = torch.randperm(len(documents), generator=generator).tolist()
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
    """Linear warm-up, then a cosine down to a small share of the peak."""
    if step < WARM_UP_STEPS:
        return peak * (step + 1) / WARM_UP_STEPS
    progress = (step - WARM_UP_STEPS) / max(steps - WARM_UP_STEPS, 1)
    share = FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * (1 + math.cos(math.pi * progress)) / 2
    return peak * share


def make_optimizer(network: Network, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only: vectors are offsets and scales with a meaning of their own."""
    matrices = [p for p in network.parameters() if p.squeeze().dim() == 2]
    vectors = [p for p in network.parameters() if p.squeeze().dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-12)


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


def train(args: argparse.Namespace) -> Network:
    """The whole run: data, network, steps, log."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    documents = stdlib_documents()
    held_out = [document for document in documents if document.held_out]
    stream = training_stream([document for document in documents if not document.held_out], generator)
    network = Network(VOCAB_SIZE, args.layers, args.width, 4 * args.width, RANKS)
    parameters = sum(p.numel() for p in network.parameters())
    print(f"{len(stream)} training tokens, {len(held_out)} held-out files, {parameters} parameters", flush=True)

    optimizer = make_optimizer(network, args.weight_decay)
    windows = Windows(stream, args.rows, args.tokens, generator)
    state = network.empty_state(args.rows)
    began, recent = time.monotonic(), 0.0
    for step in range(args.steps):
        inputs, targets, restart = windows.next()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.learning_rate)
        with torch.autocast("cpu", torch.bfloat16):
            logits, state = network(inputs, carried(state, restart))
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()

        recent += loss.item() / math.log(2) / args.log_every
        if (step + 1) % args.log_every == 0:
            seconds = time.monotonic() - began
            speed = (step + 1) * args.rows * args.tokens / seconds
            print(f"step {step + 1:6d}  {recent:.4f} bits/byte  {seconds:6.0f} s  {speed:6.0f} tokens/s", flush=True)
            recent = 0.0
    print(f"held-out: {held_out_bits_per_byte(network, held_out):.4f} bits per byte, whole files", flush=True)
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("model.safetensors"))
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a row in one step, a multiple of 16")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=100)
    args = parser.parse_args()
    network = train(args)
    tensors = {name: tensor.detach().to(torch.bfloat16) for name, tensor in network.state_dict().items()}
    save_file(tensors, args.out, metadata={"format": "pt"})
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
