"""Measures this engine beside other engines that run RWKV-7 on a CPU: same weights, prompts and lengths.

    pip install 'rwkv_batch[peers]'     # rwkv, rwkvserve, rwkv7-hf, llama-cpp-python (compiles for some 15 minutes)
    python -m benchmarks.peers --out benchmarks/results/NAME.json

Runs from the repository root. The peers may have an environment of their own; `--python` names its interpreter:

    python -m venv peers
    CMAKE_ARGS=-DGGML_NATIVE=ON peers/bin/pip install torch rwkv==0.8.32 rwkvserve rwkv7-hf llama-cpp-python gguf
    python -m benchmarks.peers --python peers/bin/python

Weights are random, in the shape of a published model. Every contender is a process of its own, started anew in every
round, one at a time. The report names peers that are missing or fail, with the reason.

    decode     prompts of one token, 16 tokens sampled for each: tokens/s from the first request to the last token
    prefill    prompts of 512 tokens, one token sampled for each: prompt tokens/s

This engine runs as in a job, with its sampler and detokenizer. Most peers take the most likely token, which costs less.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from rwkv_batch.measure.bench import positive_int, positive_ints
from rwkv_batch.measure.variants import Variant, variants
from rwkv_batch.text.vocabulary import WORLD_VOCABULARY

from .peer_process import PeerProcess
from .peer_report import as_json, report
from .peer_rounds import Contender, Round, Run, run_rounds
from .peer_workers.protocol import Task
from .timing import machine
from .workloads import FULL, MEDIUM, QUICK, VOCAB_SIZE, Point, Scale, checkpoint

SHAPES = {"0.1B": FULL, "0.4B": MEDIUM, "tiny": QUICK}
PREFILL_BATCH_SIZES = (1, 8)
SLOW_BATCH_SIZE = 32
"""The largest batch of peers that are much slower than the others."""
FORMS = {
    "rwkv": ("rwkv_package", ("cpu fp32", "cpu bf16")),
    "rwkvserve": ("rwkvserve_package", ("fp32", "bf16")),
    "rwkv7-hf": ("huggingface", ("float32", "bfloat16")),
    "llama.cpp": ("llama", ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_0 pure")),
}
"""Peer → its worker, and the number formats that are measured."""


def contenders(options: argparse.Namespace) -> list[Contender]:
    """Lists the contenders of a run. Peers come first, because ratios are to their rates."""
    sizes = options.batch_sizes
    slow = [size for size in sizes if size <= SLOW_BATCH_SIZE]
    prefill = [size for size in PREFILL_BATCH_SIZES if size <= max(sizes)]
    batches = {"rwkv": ([1], [1]), "rwkvserve": (slow, [1]), "rwkv7-hf": (slow, [1]), "llama.cpp": (sizes, prefill)}
    found = []
    for peer in options.peers:
        module, forms = FORMS[peer]
        python = options.python.get(peer, options.python.get("", sys.executable))
        chosen = options.forms.get(peer, forms)
        found += [Contender(peer, module, form, python, _points(*batches[peer])) for form in chosen]
    ours = [
        Contender("rwkv_batch", "ours", str(one), sys.executable, _points(sizes, prefill)) for one in options.variants
    ]
    return [*found, *ours]


def _points(decode: list[int], prefill: list[int]) -> list[Point]:
    return [*(Point("decode", size) for size in decode), *(Point("prefill", size) for size in prefill)]


def start(contender: Contender, path: Path, folder: Path, scale: Scale, threads: int) -> PeerProcess:
    """Starts the process of a contender.

    Raises:
        PeerFailed: the process does not start.
    """
    task = Task(
        model=str(path),
        vocabulary=str(WORLD_VOCABULARY),
        form=contender.form,
        folder=str(folder),
        threads=threads,
        vocab_size=VOCAB_SIZE,
        batch_size=max(point.batch_size for point in contender.points),
        row_tokens=max(scale.prompt_len, scale.decode_steps) + 1,
    )
    log = folder / f"{contender.name.replace(' ', '-').replace('/', '-')}.log"
    return PeerProcess(contender.module, contender.python, task, log)


def main() -> None:
    options = _options()
    scale = SHAPES[options.shape]
    torch.set_num_threads(options.threads)
    about = machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.cache or Path(temporary)).resolve()
        path = checkpoint(scale, folder)
        begin = partial(start, path=path, folder=folder, scale=scale, threads=options.threads)
        run = Run(contenders(options), scale)

        def save(_: Round) -> None:
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                result = {"machine": about, "shape": options.shape, **as_json(run)}
                options.out.write_text(json.dumps(result, indent=1) + "\n")

        run_rounds(run, begin, options.rounds, save)
    print("\n".join(f"{name}: {' '.join(v) if isinstance(v, list) else v}" for name, v in about.items()))
    print(report(run))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--shape", choices=SHAPES, default="0.1B", help="size of the random model (0.1B); tiny is for rehearsals"
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=5, metavar="N", help="rounds; each measures every contender once (5)"
    )
    parser.add_argument("--batch-sizes", type=positive_ints, default=[1, 8, 32, 64, 128], metavar="N,N,…")
    default = "float32,bfloat16,bfloat16+w8a8"
    help_text = f"forms of the weights of this engine ({default})"
    parser.add_argument("--variants", type=variants, default=[*map(Variant.parse, default.split(","))], help=help_text)
    parser.add_argument("--peers", type=_peers, default=list(FORMS), metavar="NAME,…", help=f"({','.join(FORMS)})")
    parser.add_argument(
        "--forms",
        type=_assignment,
        action="append",
        default=[],
        metavar="PEER=FORM,…",
        help="measure only these forms of a peer",
    )
    parser.add_argument(
        "--python",
        type=_assignment,
        action="append",
        default=[],
        metavar="[PEER=]PATH",
        help="interpreter that has the peers, or this peer (the present one)",
    )
    parser.add_argument(
        "--threads", type=positive_int, default=os.cpu_count(), metavar="N", help="of all engines (all cores)"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="folder that keeps all model files (a temporary one)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all results as JSON after every round")
    options = parser.parse_args()
    options.python = dict(options.python)
    options.forms = {peer: forms.split(",") for peer, forms in options.forms}
    return options


def _peers(text: str) -> list[str]:
    names = text.split(",") if text else []
    unknown = [name for name in names if name not in FORMS]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected some of {', '.join(FORMS)}, or nothing")
    return names


def _assignment(text: str) -> tuple[str, str]:
    """Splits PEER=VALUE; the peer is empty if there is none."""
    peer, _, value = text.rpartition("=")
    if peer and peer not in FORMS:
        raise argparse.ArgumentTypeError(f"got {peer!r}, expected one of {', '.join(FORMS)}")
    return peer, value


if __name__ == "__main__":
    main()
