"""Measures the cost of everything but the model: the engine and whole jobs on a device that computes nothing.

    python -m benchmarks.host
    python -m benchmarks.host --against 558f3da --cases 256x16,1024x64 --rounds 5
    python -m benchmarks.host --start-up --against 558f3da

Runs from the repository root. Model and sampler are replaced by constants. They cost the host nothing. The results
of a step are ready `--device-ms` after its start. A step starts when it is launched, or when the step before it ends.
The engine runs one step ahead, as on a CUDA device.

The name of a case has its slots, the tokens of each completion, and its special feature. The engine alone gets
token ids and gives token ids; it looks for stop strings in `stop` cases only. A whole job reads Parquet, tokenizes with
the bundled model's bytes, looks for a stop string that never comes, and writes Parquet. `score` cases score four
choices after a question with five examples before it, which the questions of a subject share. `constrained` and `few`
cases measure the engine alone, with the World vocabulary: every row, or one of sixteen, has a JSON schema.

    tokens/s         sampled tokens, or scored ones, per second: from the first request to the last completion of the
                     engine alone; of a job, from when its model is loaded until its last file is written
    per CPU second   the same per second of processor time of all threads: steadier on a machine that is busy
    rows/s           input rows
    device used      seconds in which the device ran a step ÷ seconds from the first launch to the last result; only
                     where --device-ms is above 0
    main thread      milliseconds of processor time of the main thread, per step
    all threads      milliseconds of processor time of all threads, per step
    in steps         the part of "main thread" inside Engine.step: launching steps and booking results
    launch           the part of "in steps" that packs a step's numbers, sends them, launches it and starts its copies.
                     With --recorded, replays of the engine alone do nothing
    transfers        from the host to the device, per step
    most             the largest number of such transfers in one step

Every figure is a median (minimum-maximum) of the rounds. With --against, another commit is measured in a process of its
own, in the same rounds; a ratio is this commit's figure divided by the other's of the same round. --split runs each
case once more with more clocks, and divides the time of a step among its parts: wall-clock time of the main thread,
processor time of other threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from rwkv_batch.measure.table import format_table

from .host_parts.cases import CASES, DEFAULT, Case
from .host_parts.contender import PARTS, ROOT, Contender, ContenderFailed, Package, checked_out, package

PRESENT, OTHER = "this commit", "the other"
NAMES_OF_PARTS = {"engine": "engine alone", "job": "whole job"}
COLUMNS = (
    ("tokens/s", "tokens_per_second", ",.0f"),
    ("per CPU second", "tokens_per_processor_second", ",.0f"),
    ("rows/s", "rows_per_second", ",.0f"),
    ("device used", "used_share", ".1%"),
    ("main thread, ms", "main_thread_ms", ".3f"),
    ("in steps, ms", "in_steps_ms", ".3f"),
    ("launch, ms", "launch_ms", ".3f"),
    ("all threads, ms", "all_threads_ms", ".3f"),
    ("transfers", "transfers", ".1f"),
    ("most", "most_transfers", ".0f"),
)
"""Columns of the table: heading, field of an answer, format."""
RATIOS = (
    "tokens_per_second",
    "tokens_per_processor_second",
    "rows_per_second",
    "main_thread_ms",
    "in_steps_ms",
    "all_threads_ms",
)

Runs = dict[str, dict[str, dict[str, list[dict[str, Any]]]]]
"""Case → part → contender → its answer of each round."""


def main() -> int:
    options = _options()
    try:
        with packages(options.against, options.worktree) as found:
            result = {"machine": hardware(), "commits": {name: one.commit for name, one in found.items()}}
            if options.start_up:
                result["start_up_seconds"] = start_up(found, options.rounds)
            else:
                result |= _measure(found, options)
    except ContenderFailed as error:
        print(f"benchmarks.host: {error}", file=sys.stderr)
        return 1
    _print(result)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


@contextmanager
def packages(against: str | None, worktree: Path | None) -> Iterator[dict[str, Package]]:
    """Yields the package of this commit, and that of the other commit if there is one.

    Args:
        against: the other commit. It is checked out in a temporary worktree, unless `worktree` has it.
    """
    with ExitStack() as stack:
        found = {PRESENT: package(ROOT)}
        if against is not None or worktree is not None:
            root = worktree.resolve() if worktree else stack.enter_context(checked_out(str(against)))
            found[OTHER] = package(root)
        yield found


def _measure(found: dict[str, Package], options: argparse.Namespace) -> dict[str, Any]:
    cases = [CASES[name].quick() if options.quick else CASES[name] for name in options.cases]
    settings = {"step_ms": options.device_ms, "recorded": options.recorded, "threads": options.threads}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        contenders = {}
        for number, (name, one) in enumerate(found.items()):
            contenders[name] = Contender(one, settings, Path(scratch, f"{number}.log"))
            stack.callback(contenders[name].close)
        runs = measure(contenders, cases, options.parts, options.rounds)
        splits = split(contenders, cases, options.parts) if options.split else {}
        processes = {name: one.about for name, one in contenders.items()}
    settings |= {"rounds": options.rounds, "quick": options.quick}
    return {"settings": settings, "processes": processes, "runs": runs, "ratios": ratios(runs), "splits": splits}


def measure(contenders: dict[str, Contender], cases: Sequence[Case], parts: Sequence[str], rounds: int) -> Runs:
    """Measures every contender once in each round. The order of the contenders turns round after each round."""
    runs: Runs = {
        case.name: {part: {name: [] for name in contenders} for part in parts if part in case.parts} for case in cases
    }
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for case in cases:
            for part in runs[case.name]:
                for name, contender in list(contenders.items())[:: -1 if number % 2 else 1]:
                    runs[case.name][part][name].append(contender.measure(part, case))
    return runs


def split(contenders: dict[str, Contender], cases: Sequence[Case], parts: Sequence[str]) -> dict[str, Any]:
    """Returns case → part → contender → part of a step → milliseconds."""
    return {
        case.name: {
            part: {name: one.measure(part, case, watch=True)["split_ms"] for name, one in contenders.items()}
            for part in parts
            if part in case.parts
        }
        for case in cases
    }


def ratios(runs: Runs) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Returns case → part → figure → this commit's value divided by the other's, for each round."""
    return {
        case: {
            part: {
                name: [mine[name] / its[name] for mine, its in zip(found[PRESENT], found[OTHER], strict=True)]
                for name in RATIOS
            }
            for part, found in parts.items()
            if OTHER in found
        }
        for case, parts in runs.items()
    }


def start_up(found: dict[str, Package], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Runs the demo job in fresh processes; returns their seconds until the first step, and those of `import torch`.

    One more process of each package runs first and is not counted: it fills the caches.
    """
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in found}
    for number in range(rounds + 1):
        for name, one in list(found.items())[:: -1 if number % 2 else 1]:
            with tempfile.TemporaryDirectory() as scratch:
                job = [str(one.root / "jobs" / "demo.yaml"), str(Path(scratch, "out"))]
                command, environment = one.command("start_up", one.driver, repr(monotonic()), *job)
                done = subprocess.run(
                    command, cwd=one.root, env=environment, capture_output=True, text=True, check=False
                )
            if done.returncode or not done.stdout.strip():
                raise ContenderFailed(f"{one.commit}: {done.stderr.strip()[-2000:]}")
            if number:
                seconds[name].append(json.loads(done.stdout.splitlines()[-1]))
    return seconds


def hardware() -> dict[str, Any]:
    """Describes the machine, for the result file."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), model)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"date": now, "cpu": model, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}


def spread(values: Sequence[float | None], form: str) -> str:
    """Formats values as median (minimum-maximum), one value as itself, none as "-"."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    if len(known) == 1:
        return f"{known[0]:{form}}"
    return f"{median(known):{form}} ({min(known):{form}}-{max(known):{form}})"


def _print(result: dict[str, Any]) -> None:
    print(_listed(result["machine"]))
    for name, commit in result["commits"].items():
        print(f"{name}: {commit}", _listed(result.get("processes", {}).get(name, {})))
    if "start_up_seconds" in result:
        _print_start_up(result["start_up_seconds"])
        return
    print(_listed(result["settings"]))
    for part in PARTS:
        if any(part in parts for parts in result["runs"].values()):
            _print_part(part, result["runs"], result["ratios"])
    for case, parts in result["splits"].items():
        for part, by_name in parts.items():
            _print_split(f"{case}, {NAMES_OF_PARTS[part]}", by_name)


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _print_part(part: str, runs: Runs, found: dict[str, Any]) -> None:
    rows = []
    for case, parts in runs.items():
        for name, answers in parts.get(part, {}).items():
            figures = [spread([one[key] for one in answers], form) for _, key, form in COLUMNS]
            rows.append([f"{case}, {name}", *figures])
        if part in found[case]:
            by_key = found[case][part]
            rows.append(["  ratio", *(spread(by_key.get(key, []), ".2f") for _, key, _ in COLUMNS)])
    print()
    print(format_table([NAMES_OF_PARTS[part], *(heading for heading, _, _ in COLUMNS)], rows))


def _print_split(title: str, by_name: dict[str, dict[str, float]]) -> None:
    keys = list(dict.fromkeys(key for parts in by_name.values() for key in parts))
    rows = [[key, *(f"{parts[key]:.3f}" if key in parts else "-" for parts in by_name.values())] for key in keys]
    print()
    print(format_table([f"{title}: ms a step", *by_name], rows))


def _print_start_up(seconds: dict[str, list[dict[str, float]]]) -> None:
    rows = []
    for name, found in seconds.items():
        columns = [[one["total"] for one in found], [one["torch"] for one in found]]
        columns.append([one["total"] - one["torch"] for one in found])
        rows.append([name, *(spread(column, ".2f") for column in columns)])
    print()
    print(format_table(["seconds to the first step", "all", "import torch", "the rest"], rows))


def _names(known: Sequence[str], text: str) -> list[str]:
    names = list(known) if text == "all" else text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected some of {','.join(known)}, or all")
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1")
    return int(text)


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 60_000:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected milliseconds from 0 to 60000")
    return value


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ",".join(CASES)
    parser.add_argument(
        "--cases",
        type=lambda text: _names(list(CASES), text),
        default=list(DEFAULT),
        metavar="NAME,…",
        help=f"default: {','.join(DEFAULT)}; all, or some of {known}",
    )
    parser.add_argument(
        "--parts", type=lambda text: _names(PARTS, text), default=list(PARTS), metavar="NAME,…", help="engine,job"
    )
    parser.add_argument(
        "--rounds", type=_positive, default=3, metavar="N", help="rounds; each measures every case once (3)"
    )
    parser.add_argument(
        "--device-ms",
        type=_milliseconds,
        default=0.0,
        metavar="MS",
        help="time of a step on the device, in milliseconds (0)",
    )
    parser.add_argument(
        "--recorded", action="store_true", help="take the code path of decode steps that are recorded as CUDA graphs"
    )
    parser.add_argument("--against", metavar="COMMIT", help="also measure this commit, in a temporary git worktree")
    parser.add_argument("--worktree", type=Path, metavar="FOLDER", help="folder that has the other commit checked out")
    parser.add_argument("--split", action="store_true", help="also divide the time of a step among its parts")
    parser.add_argument(
        "--start-up", action="store_true", help="measure instead how long a process takes to its first step"
    )
    parser.add_argument("--threads", type=_positive, default=os.cpu_count(), metavar="N", help="of torch (all cores)")
    parser.add_argument("--quick", action="store_true", help="rehearse with a few rows of each case")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
