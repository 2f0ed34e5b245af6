r"""Checks and measures everything that needs a GPU: one command of several parts, or two plans for a few minutes each.

The two plans run from the repository root on the machine with the GPU, here by a tool that runs a command with a time
limit and returns the folder $OUT. HASH is the commit, the same in both commands: the copy of the tree may have no git.

first, with a time limit of 270 s or more:

    set -o pipefail; PYTHONUNBUFFERED=1 python3 -m benchmarks.gpu --plan first --commit HASH --tar $OUT/first.tar.gz \
        2>&1 | tee $OUT/first.log

second, with a time limit of 360 s or more:

    set -o pipefail; PYTHONUNBUFFERED=1 python3 -m benchmarks.gpu --plan second --commit HASH --tar $OUT/second.tar.gz \
        2>&1 | tee $OUT/second.log

`first` checks that the GPU computes right results: parts smoke, limits, correctness, engine-equal and sanitizer. After
it the machine can be returned, and faults can be mended. `second` measures: decode, serving, prefill and profile. It
runs smoke and limits before them, unless this commit has their results.

- Unpack first.tar.gz in the repository root before the second command: it holds benchmarks/results/CARD.
- Commit the results only after the second command, because HASH must stay the same.
- Use the same kind of card for both: results of another card do not count.
- A plan ends by itself 45 s before its limit. The tar file is renewed every 15 s and after every part, so that a
  command that is stopped leaves its results.
- gpu_parts/compile_cache.py compiles the kernels on another machine; with --compiled, `second` compiles hardly any.

Other commands:

    python -m benchmarks.gpu                                   all parts, in the order of the list below
    python -m benchmarks.gpu decode profile --models 1.5B      some parts and models; --batches 1 256 for batch sizes
    python -m benchmarks.gpu --rehearse                        tiny sizes in Triton's interpreter, without a GPU

Each part runs in processes of its own and writes its JSON after every point. The same command, started again on the
same card and commit, continues parts that were stopped, failed, or ran out of time. It skips parts that are done,
unless --force is given.

A point that takes too long, 55 s in most parts and 400 s in job and peers, is killed with its process and counts as
failed; another process continues after it. A case of smoke that takes more than 60 s is red; one of sanitizer that
takes more than 50 s is skipped. A part that runs out of time prints how many points were not reached. A part can be
done although points of it failed or are red. Several processes compile kernels beforehand: they run a part without
measuring, and their output goes to shares/*.log.

The exit code is 1 if a check does not hold, if a point of smoke, correctness, engine-equal or sanitizer failed or was
not reached, or if a part failed or was not started. Speeds, points of timed parts that failed or were not reached, and
a missing compute-sanitizer do not change it. torch, triton and numpy are enough: without safetensors engine-equal
leaves out the demo model, and `job` is left out if a package that it needs is missing.

    smoke         every op of every GPU backend on small inputs against float64, as `rwkv-batch doctor --check` does
    limits        copy bandwidth, bfloat16 and int8 matrix peak, least time of a launch; other parts compare with them
    correctness   every op against float64 or its definition, and promised equality of bits
    kernels       bytes/s of the recurrences, products, sampler and the other ops; which tiles keep a row's bits
    engine-equal  the engine on the GPU against the reference on the CPU: greedy tokens, scores, sampled tokens
    sanitizer     every op under compute-sanitizer, which looks for accesses out of bounds and races
    decode        tokens/s of the whole engine, sampler on, B = 1 to 4096; share of the limit; host time; price of
                  batch_invariant (1.5B)
    serving       tokens/s while ended sequences are replaced by new prompts, and the share of recorded steps
    profile       kernels of a step, time by kernel, idle times, and steps that wait for the device
    prefill       packed prompts: 1 x 8192, 8 x 1024, 64 x 128
    int8          8-bit weights beside bfloat16: products for M = 1 to 8192, the whole engine for B = 1 to 1024
    streaming     a 7.2B model with a quarter of the layers resident: the share of the copies that is hidden
    job           Parquet to Parquet through `rwkv_batch.run`, ragged lengths, top-p and penalties
    peers         rwkv, flash-linear-attention, rwkvserve and rwkv-quant-nv, as far as they can be imported

An op that smoke finds broken is not used: correctness leaves its points out, engines take the next backend for it, and
the tables name it. Predicted limits are those of `roofline.py` with the rates of `limits`. Models have random weights,
drawn on the device; `job` and `peers` write one to a temporary folder. Missing packages can lie unpacked in a folder on
PYTHONPATH.

Each part prints a table, such as

    decode             tokens/s     ms  of limit  outside replay  host busy  x float32    GB
    1.5B B=256 float32   ......  .....       ..%            ..%        ..%              ....

"outside replay" is the share of a step in which the device does not replay its graph: small copies, and waiting for the
host. float32 and float16 are dtypes of the states; weights are bfloat16. The last table has one line for each part:
number of points, checks that do not hold (red), points that raised an error or took too long (failed), and points that
were not reached (left out). The status "failed" means that the process of the part ended with an error.

    part          status  seconds  points  red  failed  left out
    limits        done       ....     ...    0       0         0
    correctness   done      .....     ...    0       0         0
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from time import monotonic, time
from typing import Any

from rwkv_batch.measure.table import format_lines

from .gpu_parts.compiled import adopt, count
from .gpu_parts.plan import PARTS, PLANS, Stage, stages_of
from .gpu_parts.processes import ROOT, run_stage
from .gpu_parts.record import DONE, FAILED, LEFT_OUT, UNFINISHED, is_red, is_same
from .gpu_parts.task import Task
from .roofline import MODELS

MOST_PROCESSES = 16
UNHURRIED = 1e5
"""Time limit of a stage in a rehearsal, in seconds: none."""
LEAST_SECONDS = 12.0
"""A stage with less time than this is not started."""
PACK_SECONDS = 15.0
"""Time between two renewals of the tar file."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    _refuse_unknown(options)
    # An exception, so that the processes of the parts are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    card = "none" if options.rehearse else card_name()
    out = options.out or _default_folder(card, options.rehearse)
    base = Task(
        part="",
        out=str(out.resolve()),
        commit=options.commit or _commit(),
        rehearse=options.rehearse,
        models=tuple(options.models),
        batches=tuple(options.batches),
        compiled=str(options.compiled.resolve()) if options.compiled else "",
        forgets=options.force,
    )
    stages = PLANS[options.plan] if options.plan else stages_of(tuple(options.parts or PARTS))
    tasks = {name: replace(base, part=name) for stage in stages for name in stage.parts}
    about = {"card": card, "rwkv_batch": base.commit, "rehearsal": base.rehearse}
    done = set() if options.force else {name for name, task in tasks.items() if _is_done(task, about)}
    for name in done:
        say(f"{name}: done before, on this card and with this commit")
    num_compiled = adopt(options.compiled) if options.compiled else 0
    asked = _run(stages, tasks, done, options)
    if options.compiled:
        print(f"\n{num_compiled} kernels were brought along, {count(options.compiled) - num_compiled} compiled here")
    results = {name: task.results_of(name) for name, task in tasks.items()}
    print("\n" + "\n".join(_summary(results)))
    print(f"\nwritten: {out}")
    return 0 if all(is_good(results[name]) for name in asked) else 1


def _parser() -> argparse.ArgumentParser:
    title, _, text = (__doc__ or "").partition("\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=title, epilog=text, formatter_class=raw
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="names of parts, listed below (all)")
    parser.add_argument("--plan", choices=PLANS, help="a choice of parts that fit a given time, instead of PART")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME", help=f"models: some of {', '.join(MODELS)}")
    parser.add_argument("--batches", nargs="+", default=[], type=int, metavar="B", help="batch sizes")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of results (benchmarks/results/<the card's name>)"
    )
    parser.add_argument("--tar", type=Path, metavar="FILE", help="also write all results to one .tar.gz file")
    parser.add_argument("--compiled", type=Path, metavar="DIR", help="folder of kernels from `gpu_parts.compile_cache`")
    parser.add_argument("--minutes", type=float, default=1e6, metavar="N", help="time limit of all parts together")
    parser.add_argument("--force", action="store_true", help="measure again what has been measured")
    parser.add_argument("--rehearse", action="store_true", help="run tiny sizes on the CPU; figures mean nothing")
    parser.add_argument("--commit", metavar="TEXT", help="commit of the tree, if there is no git")
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="processes that compile or check at a time (number of cores, at most 16)",
    )
    return parser


def _refuse_unknown(options: argparse.Namespace) -> None:
    for kind, names, known in (("part", options.parts, PARTS), ("model", options.models, MODELS)):
        for name in names:
            if name not in known:
                _parser().error(f"no {kind} {name!r}; there are {', '.join(known)}")
    if options.compiled and not options.compiled.is_dir():
        _parser().error(f"--compiled {options.compiled}: no such folder; benchmarks.gpu_parts.compile_cache makes one")
    if options.plan and options.parts:
        _parser().error(f"--plan {options.plan} and the parts {' '.join(options.parts)}: give one of both")


def _run(stages: Sequence[Stage], tasks: dict[str, Task], done: set[str], options: argparse.Namespace) -> list[str]:
    """Runs the stages; returns the parts that were to run."""
    begin, seconds, asked = monotonic(), 0.0, list[str]()
    pack = partial(_pack, options.tar, Path(next(iter(tasks.values())).out)) if options.tar else lambda: None
    packing = _every(PACK_SECONDS, pack)
    default = 1 if options.rehearse else min(os.cpu_count() or 1, MOST_PROCESSES)
    num_processes = options.processes or default
    for stage in stages:
        seconds += UNHURRIED if options.rehearse else stage.seconds
        end = begin + min(seconds, 60 * options.minutes)
        if stage.is_dry:  # measures nothing, so it gets no time that other stages left
            end = min(end, monotonic() + (UNHURRIED if options.rehearse else stage.seconds))
        names = [name for name in stage.parts if name not in done]
        if not names or (stage.is_dry and options.rehearse and not options.processes):
            continue
        what = f"{', '.join(names)}{' (compiling)' if stage.is_dry else ''}"
        asked += [] if stage.is_dry else names
        start = monotonic()
        if end - start < LEAST_SECONDS:
            say(f"{what}: not started, no time is left")
            continue
        say(what if options.rehearse else f"{what}: up to {end - start:.0f} s")
        try:
            own = [replace(tasks[name], end=end, is_brief=bool(options.plan)) for name in names]
            run_stage(stage, own, num_processes, say, packing)
        finally:
            pack()
        say(f"{what}: {monotonic() - start:.0f} s")
        if stage.is_dry:
            continue
        for name in names:
            print(f"\n{name}\n" + "\n".join((tasks[name].results_of(name) or {}).get("table", [])), flush=True)
    return asked


def _every(seconds: float, function: Callable[[], None]) -> Callable[[], None]:
    """Wraps a function so that calls within so many seconds after the last one do nothing."""
    last = monotonic()

    def call() -> None:
        nonlocal last
        if monotonic() - last >= seconds:
            function()
            last = monotonic()

    return call


def _pack(path: Path, folder: Path) -> None:
    """Writes all results to one tar file, atomically, with paths relative to the repository."""
    inside = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else Path(folder.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    with tarfile.open(unfinished, "w:gz") as archive:
        for file in sorted((*folder.glob("*.json"), *folder.glob("shares/*"))):
            content = file.read_bytes()  # read once, because a process may replace the file
            entry = tarfile.TarInfo(str(inside / file.relative_to(folder)))
            entry.size, entry.mtime = len(content), int(time())
            archive.addfile(entry, BytesIO(content))
    os.replace(unfinished, path)


def _is_done(task: Task, about: dict[str, Any]) -> bool:
    found = task.results_of(task.part)
    return found is not None and found["status"] == DONE and is_same(found["about"], about)


def _summary(results: dict[str, dict[str, Any] | None]) -> list[str]:
    rows = []
    for name, found in results.items():
        if found is None:
            rows.append([name, "not run", *[""] * 5])
            continue
        red = sum(is_red(point) for point in found["points"].values())
        counts = (len(found["points"]), red, len(found["failed"]), len(found["left_out"]))
        rows.append([name, found["status"], f"{found['seconds']:.1f}", *map(str, counts)])
    return format_lines(["part", "status", "seconds", "points", "red", "failed", "left out"], rows)


def is_good(found: dict[str, Any] | None) -> bool:
    """True if the part did not fail and its checks hold. A check that could not be made counts as a failure.

    A part of checks that is left out because a package is missing is good.
    """
    if found is None or found["status"] == FAILED:
        return False
    if PARTS[found["part"]].is_check:
        is_left = found["status"] == UNFINISHED and not found["why"].startswith(LEFT_OUT)
        if found["failed"] or is_left:
            return False
    return not any(map(is_red, found["points"].values()))


def card_name() -> str:
    """Returns the first GPU's name from its driver."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "--id=0"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    return "unknown"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() or "no git repository"
    return "no git"


def _default_folder(card: str, is_rehearsal: bool) -> Path:
    if is_rehearsal:
        return Path(tempfile.mkdtemp(prefix="rwkv_batch-rehearsal-"))
    return ROOT / "benchmarks" / "results" / re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
