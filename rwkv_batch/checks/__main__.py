"""python -m rwkv_batch.checks: the checks of `rwkv-batch doctor --check`, or some of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import ConfigurationError
from ..measure.doctor import check, findings, format_findings
from .runner import ALL_BACKENDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs checks; exit code 1 if one fails."""
    parser = argparse.ArgumentParser(prog="python -m rwkv_batch.checks", description="Check this machine.")
    parser.add_argument("--devices", nargs="+", type=_device, metavar="DEVICE", help="such as cuda:0 and cpu")
    parser.add_argument("--backends", nargs="+", choices=ALL_BACKENDS, help="who serves the ops")
    parser.add_argument("--ops", nargs="+", metavar="OP", help="such as wkv7 and linear; demo is the demo model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    parser.add_argument("--at-once", type=int, metavar="N", help="cases that run at the same time, as for doctor")
    options = parser.parse_args(arguments)
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.parent}")
    print(format_findings(findings()), end="\n\n")
    try:
        return 0 if check(options.devices, options.backends, options.ops, options.json, options.at_once) else 1
    except ConfigurationError as error:
        print(f"rwkv_batch.checks: {error}", file=sys.stderr)
        return 2


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"got {name!r}, expected a device such as cuda:0 or cpu") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise argparse.ArgumentTypeError(f"{name} is not there: this torch ({torch.__version__}) sees {count} GPUs")
    return device


if __name__ == "__main__":
    sys.exit(main())
