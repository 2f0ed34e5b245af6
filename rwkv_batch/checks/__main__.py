"""python -m rwkv_batch.checks: what `rwkv-batch doctor --check` does, or a part of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..doctor import check, findings, format_findings
from ..errors import ConfigurationError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m rwkv_batch.checks", description="Check this machine.")
    parser.add_argument("--devices", nargs="+", type=torch.device, metavar="DEVICE", help="such as cuda:0 and cpu")
    parser.add_argument("--backends", nargs="+", metavar="BACKEND", help="of auto, triton, cuda, cpu and reference")
    parser.add_argument("--ops", nargs="+", metavar="OP", help="such as wkv7 and linear; demo is the demo model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    parser.add_argument("--at-once", type=int, metavar="N", help="check so many cases at a time; default: what fits")
    options = parser.parse_args(arguments)
    print(format_findings(findings()), end="\n\n")
    try:
        return 0 if check(options.devices, options.backends, options.ops, options.json, options.at_once) else 1
    except ConfigurationError as error:
        print(f"rwkv_batch.checks: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
