"""How a job scales with its workers: a simulation with up to 1,000 of them, and real workers on this machine.

    python -m benchmarks.scaling simulate
    python -m benchmarks.scaling costs
    python -m benchmarks.scaling workers --rounds 3
    python -m benchmarks.scaling long --rows 1000000

    simulate  a job of given size with 1 to 1,000 workers whose speeds differ and which fail: its efficiency, which is
              tokens/s ÷ (workers × their mean speed × the tokens/s of one worker that never fails), and the tokens that
              failures waste. --cost NAME=VALUE replaces a cost; the table of costs names the source of each
    costs     the processor time of a coordinator for each row, message and unit; and the requests to an object store
              for each unit (needs the packages of the extra `test`)
    workers   the same job with one and with two local workers, in interleaved rounds; a device that computes nothing
              takes --step-ms for each step, see `benchmarks.host`
    long      a job with two local workers and a model that takes no time: it is killed when half of the parts are
              there, and started again. Its memory is watched, and all parts are compared with the input

Runs from the repository root. --quick rehearses with a few rows; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rwkv_batch.job.plan import rows_per_part
from rwkv_batch.measure.bench import positive_int
from rwkv_batch.measure.table import format_lines

from .scaling_parts.chart import efficiency_chart
from .scaling_parts.described import Fleet, Work
from .scaling_parts.measured import MEASURED, measured_costs
from .scaling_parts.tables import SHOWN, WORKERS, Point, points, saturation
from .timing import machine

SIZES = (1_000_000, 100_000_000)


def command(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Exit code 1 where a real job is not as it should be."""
    options = _parser().parse_args(arguments)
    result: dict[str, Any] = options.run(options)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")
    return 1 if result.get("wrong") else 0


def simulate(options: argparse.Namespace) -> dict[str, Any]:
    """Simulates all jobs, prints their tables and writes their charts."""
    costs = measured_costs(dict(options.cost))
    fleet = Fleet(1, options.slots, options.step_ms / 1000, cold_start=options.cold_start, isolated=options.isolated)
    lines = [[name, f"{getattr(costs, name):g}", figure.source] for name, figure in MEASURED.items()]
    _print(["cost", "value", "source"], lines, left_columns=3)
    limits = saturation(fleet, costs)
    print("\nworkers whose messages take all of one coordinator's time:")
    _print(["tokens of a row", "workers"], [[f"{tokens:,}", f"{count:,}"] for tokens, count in limits.items()])
    jobs = {}
    for rows in options.rows or SIZES:
        work = Work(rows, options.rows_per_part or rows_per_part(rows), options.tokens, options.spread)
        jobs[rows] = found = list(points(work, fleet, costs, options.seed, options.workers))
        title = f"{rows:,} rows × {options.tokens} tokens: efficiency"
        print(f"\n{title}; of most workers the units, the tokens wasted, and the coordinator's share of a core")
        _print_points(found, options.workers)
        if options.plot:
            options.plot.mkdir(parents=True, exist_ok=True)
            shown = [point for point in found if point.variant in SHOWN]
            (options.plot / f"scaling-{rows}.svg").write_text(_chart(title, shown, options.workers))
    return {
        "settings": {name: getattr(options, name) for name in ("tokens", "spread", "slots", "step_ms", "cold_start")},
        "costs": {name: getattr(costs, name) for name in MEASURED},
        "saturation": limits,
        "jobs": {rows: [point.figures() for point in found] for rows, found in jobs.items()},
    }


def _print_points(found: Sequence[Point], counts: Sequence[int]) -> None:
    header = ["units", "parts", "fleet", *(f"{count:,}" for count in counts), "units", "wasted", "coordinator"]
    lines = []
    for variant in dict.fromkeys(point.variant for point in found):
        line = [point for point in found if point.variant == variant]
        last = line[-1]
        shares = [f"{point.efficiency:.2f}" for point in line]
        ends = [f"{last.units:,}", f"{last.wasted:.2%}", f"{last.outcome.coordinator_share:.0%}"]
        lines.append([variant.plan, variant.store, str(variant.disturbance), *shares, *ends])
    _print(header, lines, left_columns=3)


def _chart(title: str, found: Sequence[Point], counts: Sequence[int]) -> str:
    series: dict[str, list[float]] = {}
    for point in found:
        series.setdefault(str(point.variant), []).append(point.efficiency)
    return efficiency_chart(title, counts, series)


def costs(options: argparse.Namespace) -> dict[str, Any]:
    """Measures what the coordinator and the store cost, and prints it beside the defaults of the simulation."""
    from .scaling_parts import coordinator_costs, store_requests

    found = coordinator_costs.measure(1000 if options.quick else 400_000, 1 if options.quick else options.rounds)
    rows_of_a_part = 1000 if options.quick else 20_000
    found["report_row_seconds"] = coordinator_costs.report_row_seconds(rows_of_a_part, 5 if options.quick else 50)
    found |= store_requests.measure()
    _print(
        ["cost", "measured", "default"], [[name, f"{found[name]:.3g}", f"{MEASURED[name].value:g}"] for name in found]
    )
    return {"costs": found}


def workers(options: argparse.Namespace) -> dict[str, Any]:
    """Measures a job with one and with two local workers, and prints both beside the simulation."""
    from .scaling_parts import local_rounds

    job = local_rounds.QUICK if options.quick else local_rounds.Settings(options.rows, options.tokens, options.step_ms)
    rounds = local_rounds.measure(job, 1 if options.quick else options.rounds)
    simulated = local_rounds.simulated(job)
    lines = local_rounds.lines(rounds, simulated)
    _print(["", "1 worker", "2 workers", "ratio of a round"], lines)
    return {"settings": job._asdict(), "rounds": rounds, "simulated": simulated}


def long(options: argparse.Namespace) -> dict[str, Any]:
    """Runs a long job with two local workers, kills it in the middle, and starts it again."""
    from .scaling_parts import long_job

    found = long_job.run(long_job.QUICK if options.quick else long_job.Settings(options.rows, options.tokens))
    _print(["", ""], [[name, str(value)] for name, value in found.items() if name != "memory"], left_columns=2)
    for name, memory in found["memory"].items():
        print(f"{name}: " + ", ".join(f"{mebibytes:.0f} MiB" for mebibytes in memory))
    return found


def _print(header: Sequence[str], rows: Sequence[Sequence[str]], left_columns: int = 1) -> None:
    print("\n".join(format_lines(header, rows, left_columns)), flush=True)


def _cost(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        if name in MEASURED:
            return name, float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=VALUE with one of {', '.join(MEASURED)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = _add(commands, "simulate", simulate)
    one.add_argument(
        "--rows", type=positive_int, action="append", metavar="N", help=f"of a job, may be repeated {SIZES}"
    )
    one.add_argument("--tokens", type=positive_int, default=256, metavar="N", help="of a row (256)")
    one.add_argument("--spread", type=float, default=0.0, metavar="S", help="lengths are 1 - S to 1 + S times that (0)")
    one.add_argument("--rows-per-part", type=positive_int, metavar="N", help="in place of auto")
    one.add_argument("--workers", type=positive_int, nargs="+", default=list(WORKERS), metavar="N")
    one.add_argument("--slots", type=positive_int, default=1024, metavar="N", help="of a worker (1024)")
    one.add_argument("--step-ms", type=float, default=20.0, metavar="MS", help="time of a step (20)")
    one.add_argument("--cold-start", type=float, default=60.0, metavar="S", help="seconds until a worker serves (60)")
    one.add_argument("--isolated", type=positive_int, default=1, metavar="N", help="workers that serve suspects (1)")
    one.add_argument("--cost", type=_cost, action="append", default=[], metavar="NAME=VALUE")
    one.add_argument("--seed", type=int, default=0, metavar="N")
    one.add_argument("--plot", type=Path, metavar="FOLDER", help="gets a chart in SVG for each job")
    _add(commands, "costs", costs).add_argument("--rounds", type=positive_int, default=5, metavar="N")
    one = _add(commands, "workers", workers)
    one.add_argument("--rounds", type=positive_int, default=3, metavar="N")
    one.add_argument("--rows", type=positive_int, default=32_000, metavar="N", help="of the job (32000)")
    one.add_argument("--tokens", type=positive_int, default=64, metavar="N", help="of a row (64)")
    one.add_argument("--step-ms", type=float, default=20.0, metavar="MS", help="time of a step (20)")
    one = _add(commands, "long", long)
    one.add_argument("--rows", type=positive_int, default=100_000, metavar="N", help="of the job (100000)")
    one.add_argument("--tokens", type=positive_int, default=16, metavar="N", help="of a row (16)")
    return parser


def _add(commands: Any, name: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=run.__doc__.partition("\n")[0])
    parser.set_defaults(run=run)
    parser.add_argument("--quick", action="store_true", help="rehearse with a few rows")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(command())
