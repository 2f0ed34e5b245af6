"""Everything that needs a GPU to be known, in one command of several parts.

    python -m benchmarks.gpu                                   all parts, in this order
    python -m benchmarks.gpu decode profile                    some of them
    python -m benchmarks.gpu --rehearse                        tiny sizes in Triton's interpreter, without a GPU

runs from the repository root. Each part is a process of its own, takes less than 10 minutes, and writes its JSON after
every point: a part that is stopped, that fails, or whose time is over goes on with what is missing when the same
command is started again, on the same card and commit. A part that is done is skipped, unless --force. Kernels are
compiled beforehand, by several processes that go through the part without measuring. Nothing asserts a speed; a check
that does not hold makes the exit code 1, and so does a part that failed.

    limits        copy bandwidth, bfloat16 and int8 matrix peak, floor of a launch: the denominators of what follows
    correctness   every Triton op against float64 or its definition, and to the bit where that is promised
    kernels       bytes/s of the recurrences, products, sampler and the other ops; which tiles keep a row's bits
    engine-equal  the engine on the GPU against the reference on the CPU: greedy tokens, scores, sampled tokens
    decode        tokens/s of the whole engine, sampler on, B = 1 to 4096; share of the limit; host time; price of
                  batch_invariant
    profile       kernels of a step, time by kernel, idle time, and that no step waits for the device
    prefill       packed prompts: 1 x 8192, 8 x 1024, 64 x 128
    int8          8-bit weights beside bfloat16: products for M = 1 to 8192, the whole engine for B = 1 to 1024
    streaming     a 7.2B model of which a quarter of the layers is resident: how much of the copies is hidden
    job           Parquet to Parquet through `rwkv_batch.run`, ragged lengths, top-p and penalties
    peers         rwkv, flash-linear-attention, rwkvserve and rwkv-quant-nv, as far as they can be imported

Predicted limits are those of `roofline.py` with what `limits` measured. Models have random weights, drawn on the
device; `job` and `peers` write one to a temporary folder.

On a machine that is lent for some minutes, into which results are copied with the tree and out of which only one folder
comes back, name both, and put the files of that folder into the earlier one before the next part:

    python3 -m benchmarks.gpu limits correctness --minutes 9 --commit HASH --earlier benchmarks/results/h200 --out DIR

Packages that are missing there (pydantic for `job`, the peers for `peers`) can lie unpacked in a folder on PYTHONPATH.

Each part prints a table, such as

    decode             tokens/s     ms  of limit  outside replay  host busy  x float32    GB
    1.5B B=256 float32   ......  .....       ..%            ..%        ..%              ....

("outside replay" is the share of a step in which the device does not replay its graph: small copies, and waiting for
the host), and what comes last is one line a part:

    part          status  seconds  points  red  failed  left out
    limits        done       21.4       6    0       0         0
    correctness   done      148.0      71    0       0         0
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from .gpu_parts.columns import format_columns
from .gpu_parts.record import DONE, FAILED, RUNNING, UNFINISHED, Record, is_red, read, reason

ROOT = Path(__file__).parents[1]
PARTS = {
    "limits": 3,
    "correctness": 9,
    "kernels": 9,
    "engine-equal": 6,
    "decode": 9,
    "profile": 5,
    "prefill": 5,
    "int8": 9,
    "streaming": 5,
    "job": 8,
    "peers": 9,
}
"""Name → minutes after which no point is started."""
MODULES = {"engine-equal": "engine_equal"}
CHECKING = ("correctness", "engine-equal")
"""Parts whose points are checks."""
GRACE_SECONDS = 30
"""What a started point may take beyond its part's time."""
ATTEMPTS = 4
"""Processes that a part may use up."""
SHOWN = 12
"""Lines of checks that do not hold, and of points that failed; all of them are in the JSON."""
DRY_SECONDS = 150
"""What compiling beforehand may take."""
NOT_DRY = ("limits", "job", "peers")
"""They compile little, or in processes of their own."""


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
            _say(f"{name}: done before, on {earlier['about']['card']}, commit {earlier['about']['rwkv_batch']}")
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
    parser.add_argument("--shares", type=int, metavar="N", help="processes that compile kernels before a part (8)")
    parser.add_argument("--inside", type=float, metavar="SECONDS", help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, metavar="I", help=argparse.SUPPRESS)
    parser.add_argument("--goes-on", action="store_true", help=argparse.SUPPRESS)
    return parser


def _start(name: str, out: Path, seconds: float, options: argparse.Namespace) -> None:
    """Run one part in a process of its own, and see that its file says how that ended."""
    _say(f"{name}: up to {seconds / 60:.1f} minutes")
    path = out / f"{name}.json"
    if options.force:
        path.unlink(missing_ok=True)
    start, shares = monotonic(), _num_shares(options)
    if shares and name not in NOT_DRY:
        dry = [_launch(name, out, seconds, options, share) for share in range(shares)]
        for process in dry:
            _wait(process, max(start + min(DRY_SECONDS, seconds / 2) - monotonic(), 0))
        _say(f"{name}: compiled in {monotonic() - start:.0f} s")
        seconds -= monotonic() - start
    end = monotonic() + seconds
    for attempt in range(ATTEMPTS):
        left = end - monotonic()
        why = _wait(_launch(name, out, left, options, goes_on=attempt > 0), left + GRACE_SECONDS)
        if why:
            _note_failure(path, name, why)
        found = read(path)
        # Where one point took the process or the device with it, another process does those that come after it.
        if found is None or found["status"] != FAILED or not found["current"] or end - monotonic() < GRACE_SECONDS:
            return


def _num_shares(options: argparse.Namespace) -> int:
    if options.shares is not None:
        return int(options.shares)
    return 0 if options.rehearse else 8


def _launch(
    name: str,
    out: Path,
    seconds: float,
    options: argparse.Namespace,
    share: int | None = None,
    goes_on: bool = False,
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.gpu", name, "--inside", str(seconds), "--out", str(out)]
    command += ["--earlier", str(options.earlier)] if options.earlier else []
    flags = {"--rehearse": options.rehearse, "--force": options.force and not goes_on, "--goes-on": goes_on}
    command += [flag for flag, is_given in flags.items() if is_given]
    command += ["--commit", options.commit] if options.commit else []
    command += [] if share is None else ["--share", str(share), "--shares", str(_num_shares(options))]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if options.rehearse:
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    quiet = None if share is None else subprocess.DEVNULL
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, stdout=quiet, stderr=quiet)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Until the process ends, or its time is over; says why it is no good end, if so."""
    why = ""
    try:
        code = process.wait(seconds)
        why = f"its process ended with {code}" if code else ""
    except subprocess.TimeoutExpired:
        why = f"stopped after {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return why


def _note_failure(path: Path, name: str, why: str) -> None:
    """A process that ended early could not say so itself."""
    found = read(path)
    if found is None:
        record = Record(path, {}, 0, None, _say)
        record.write(FAILED, why)
    elif found["why"] == RUNNING:
        path.write_text(json.dumps(found | {"status": FAILED, "why": why}, indent=1) + "\n")
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
    is_dry = options.share is not None
    share = (options.share, options.shares) if is_dry else None
    path = options.out / f"{name}.json"
    record = Record(path, facts, options.inside, earlier, _say, share, options.goes_on)
    record.write(UNFINISHED, RUNNING)
    needed = {other: read(options.out / f"{other}.json") or _earlier(options, other) for other in ("limits", "decode")}
    points = {other: found["points"] if found else {} for other, found in needed.items()}
    status, why, table = DONE, "", []
    with tempfile.TemporaryDirectory(prefix="rwkv_batch-gpu-") as folder:
        context = Context(
            device, options.rehearse, is_dry, Path(folder), record, points["limits"], points["decode"], _say
        )
        try:
            module = import_module(f".gpu_parts.{MODULES.get(name, name)}", __package__)
            table = module.run(context)
        except Exception as error:  # the other parts go on
            status, why = FAILED, reason(error)
            traceback.print_exc()
    if record.left_out and status == DONE:
        status, why = UNFINISHED, f"no time for {_shortened(record.left_out, ', ')}"
    if name != "limits" and not points["limits"]:
        why = f"{why}; limits were not measured: those of an H200 are assumed".removeprefix("; ")
    red = [f"RED {point}: {found.get('why', '')}" for point, found in record.points.items() if is_red(found)]
    missing = [f"FAILED {point}: {what}" for point, what in record.failed.items()]
    lines = [_shortened(found, "\n") for found in (red, missing) if found]
    record.write(status, why, [str(facts["card"]), *table, *lines, *([why] if why else [])])
    return 0


def _shortened(items: Sequence[str], between: str) -> str:
    """The first of them, and how many more there are."""
    more = [f"and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return between.join([*items[:SHOWN], *more])


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
    """The part did not fail, and its checks hold; a check that could not be made does not."""
    if found is None or found["status"] == FAILED or (found["part"] in CHECKING and found["failed"]):
        return False
    return not any(map(is_red, found["points"].values()))


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
