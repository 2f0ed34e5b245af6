"""python -m rwkv_batch.checks: the checks of `rwkv-batch doctor --check`, by themselves."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from .result import CheckResult
from .runner import run_checks
from .table import format_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m rwkv_batch.checks", description=__doc__)
    parser.add_argument("--devices", nargs="+", type=torch.device, metavar="DEVICE", help="such as cuda:0 and cpu")
    parser.add_argument("--backends", nargs="+", metavar="BACKEND", help="of triton, cuda, cpu and reference")
    parser.add_argument("--ops", nargs="+", metavar="OP", help="such as wkv7 and linear")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    options = parser.parse_args(arguments)
    results = run_checks(options.devices, options.backends, ops=options.ops, report=say)
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    print(format_table(results))
    return 0 if all(result.is_good for result in results) else 1


def say(result: CheckResult) -> None:
    """Progress, on standard error."""
    print(f"{result.name} ({result.backend}, {result.device}): {result.status}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
