"""Everything that needs a GPU to be known, in one command of several parts.

    python -m benchmarks.gpu                                   all parts, in this order
    python -m benchmarks.gpu decode profile                    some of them
    python -m benchmarks.gpu --rehearse                        tiny sizes in Triton's interpreter, without a GPU

runs from the repository root. Each part is a process of its own, takes less than 10 minutes, and writes its JSON after
every point: a part that is stopped, that fails, or whose time is over goes on with what is missing when the same command
is started again, on the same card and commit. A part that is done is skipped, unless --force. Nothing asserts a speed; a
check that does not hold makes the exit code 1, and so does a part that failed.

    limits        copy bandwidth, bfloat16 and int8 matrix peak, floor of a launch: the denominators of what follows
    correctness   every Triton op against float64 or its definition, and to the bit where that is promised
    kernels       bytes/s of the recurrences, products, sampler and the other ops; which tiles keep a row's bits
    engine-equal  the engine on the GPU against the reference on the CPU: greedy tokens, scores, sampled tokens
    decode        tokens/s of the whole engine, sampler on, B = 1 to 4096; share of the limit; host time; price of
                  batch_invariant
    profile       kernels of a step, time by kernel, idle time, and that no step waits for the device
    prefill       packed prompts: 1 x 8192, 8 x 1024, 64 x 128
    job           Parquet to Parquet through `rwkv_batch.run`, ragged lengths, top-p and penalties
    peers         rwkv, flash-linear-attention, rwkvserve and rwkv-quant-nv, as far as they can be imported

Predicted limits are those of `roofline.py` with what `limits` measured. Models have random weights, drawn on the device;
`job` and `peers` write one to a temporary folder.

On a machine that is lent for some minutes, into which results are copied with the tree and out of which only one folder
comes back, name both:

    python3 -m benchmarks.gpu limits correctness --minutes 9 --earlier benchmarks/results/h200 --out "$OUT" --commit HASH

and put the files of that folder into benchmarks/results/h200 before the next part. Packages that are missing there
(pydantic for `job`; einops and the peers themselves for `peers`) can lie unpacked in a folder on PYTHONPATH.

What comes last is one line a part, after the tables of those that ran:

    part          status  seconds  points  red  failed  left out
    limits        done       21.4       6    0       0         0
    correctness   done      148.0      71    0       0         0
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from time import monotonic
from typing import Any

from .gpu_parts.columns import format_columns
from .gpu_parts.record import DONE, FAILED, UNFINISHED, Record, is_red, read, reason

ROOT = Path(__file__).parents[1]
PARTS = {
    "limits": 3,
    "correctness": 9,
    "kernels": 9,
    "engine-equal": 6,
    "decode": 9,
    "profile": 5,
    "prefill": 5,
    "job": 8,
    "peers": 9,
}
"""Name → minutes after which no point is started."""
MODULES = {"engine-equal": "engine_equal"}
GRACE_SECONDS = 30
"""What a started point may take beyond its part's time."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        _parser().error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if options.inside:
        return _run_inside(options)
    out = options.out or _default_folder(options.rehearse)
    out.mkdir(parents=True, exist_ok=True)
    end = monotonic() + 60 * options.minutes
    ran = []
    for name in options.parts or PARTS:
        earlier = read(out / f"{name}.json") or _earlier(options, name)
        if earlier is not None and earlier["status"] == DONE and not options.force:
            _say(f"{name}: done before")
        elif end - monotonic() < 20:
            _say(f"{name}: not started, the time is over")
        else:
            _start(name, out, min(60 * PARTS[name], end - monotonic()), options)
            ran.append(name)
    results = {name: read(out / f"{name}.json") or _earlier(options, name) for name in options.parts or PARTS}
    for name in ran:
        found = results[name]
        print(f"\n{name}\n" + "\n".join((found or {}).get("table", [])))
    print("\n" + "\n".join(_summary(results)))
    print(f"\nwritten: {out}")
    return 0 if all(_is_good(results[name]) for name in ran) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results/<the card's name>")
    parser.add_argument("--earlier", type=Path, metavar="DIR", help="results of earlier starts; read, not written")
    parser.add_argument("--minutes", type=float, default=1e6, metavar="N", help="of all parts together")
    parser.add_argument("--force", action="store_true", help="measure again what has been measured")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU; figures mean nothing")
    parser.add_argument("--commit", metavar="TEXT", help="of the tree, where git can't tell")
    parser.add_argument("--inside", type=float, metavar="SECONDS", help=argparse.SUPPRESS)
    return parser


def _start(name: str, out: Path, seconds: float, options: argparse.Namespace) -> None:
    """Run one part in a process of its own, and see that its file says how that ended."""
    _say(f"{name}: up to {seconds / 60:.1f} minutes")
    path = out / f"{name}.json"
    if options.force:
        path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", name, "--inside", str(seconds), "--out", str(out)]
    command += ["--earlier", str(options.earlier)] if options.earlier else []
    command += [flag for flag, given in (("--rehearse", options.rehearse), ("--force", options.force)) if given]
    command += ["--commit", options.commit] if options.commit else []
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if options.rehearse:
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    why = ""
    try:
        code = process.wait(seconds + GRACE_SECONDS)
        why = f"its process ended with {code}" if code else ""
    except subprocess.TimeoutExpired:
        why = f"stopped after {seconds + GRACE_SECONDS:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if why:
        _note_failure(path, name, why)


def _note_failure(path: Path, name: str, why: str) -> None:
    """A process that ended early could not say so itself."""
    found = read(path)
    if found is None:
        record = Record(path, {}, 0, None, _say)
        record.write(FAILED, why)
    elif found["why"] == "running":
        record = Record(path, found["about"], 0, found, _say)
        record.failed, record.left_out = found["failed"], found["left_out"]
        record.write(FAILED, why)
    _say(f"{name}: {why}")


def _run_inside(options: argparse.Namespace) -> int:
    """This process is one part."""
    from importlib import import_module

    import torch

    from .gpu_parts.context import Context
    from .gpu_parts.device import about

    (name,) = options.parts
    if not options.rehearse and not torch.cuda.is_available():
        _say("no CUDA device; --rehearse runs without one")
        return 2
    device = torch.device("cpu" if options.rehearse else "cuda")
    if options.rehearse:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    facts = about(device, options.commit, options.rehearse)
    earlier = None if options.force else read(options.out / f"{name}.json") or _earlier(options, name)
    record = Record(options.out / f"{name}.json", facts, options.inside, earlier, _say)
    record.write(UNFINISHED, "running")
    needed = {other: read(options.out / f"{other}.json") or _earlier(options, other) for other in ("limits", "decode")}
    points = {other: found["points"] if found else {} for other, found in needed.items()}
    status, why, table = DONE, "", []
    with tempfile.TemporaryDirectory(prefix="rwkv_batch-gpu-") as folder:
        context = Context(device, options.rehearse, Path(folder), record, points["limits"], points["decode"], _say)
        try:
            module = import_module(f".gpu_parts.{MODULES.get(name, name)}", __package__)
            table = module.run(context)
        except Exception as error:  # the other parts go on
            status, why = FAILED, reason(error)
            traceback.print_exc()
    if record.left_out and status == DONE:
        status, why = UNFINISHED, f"no time for {', '.join(record.left_out)}"
    if name != "limits" and not points["limits"]:
        why = f"{why}; limits were not measured: those of an H200 are assumed".removeprefix("; ")
    red = [f"RED {point}: {found.get('why', '')}" for point, found in record.points.items() if is_red(found)]
    missing = [f"FAILED {point}: {what}" for point, what in record.failed.items()]
    record.write(status, why, [str(facts["card"]), *table, *red, *missing, *([why] if why else [])])
    return 0


def _earlier(options: argparse.Namespace, name: str) -> dict[str, Any] | None:
    return read(options.earlier / f"{name}.json") if options.earlier else None


def _summary(results: dict[str, dict[str, Any] | None]) -> list[str]:
    rows = []
    for name, found in results.items():
        if found is None:
            rows.append([name, "not run", *[""] * 5])
            continue
        red = sum(is_red(point) for point in found["points"].values())
        counts = (len(found["points"]), red, len(found["failed"]), len(found["left_out"]))
        rows.append([name, found["status"], f"{found['seconds']:.1f}", *map(str, counts)])
    return format_columns(["part", "status", "seconds", "points", "red", "failed", "left out"], rows)


def _is_good(found: dict[str, Any] | None) -> bool:
    return found is not None and found["status"] != FAILED and not any(map(is_red, found["points"].values()))


def _default_folder(is_rehearsal: bool) -> Path:
    if is_rehearsal:
        return Path(tempfile.mkdtemp(prefix="rwkv_batch-rehearsal-"))
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "--id=0"]
    try:
        name = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        name = "gpu"
    return ROOT / "benchmarks" / "results" / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
