"""The command lines of the commands before and after a job."""

from __future__ import annotations

from typing import Any

from .job_parsers import add_completion, add_estimate, add_eval, add_init, add_inspect, add_schema
from .output_parsers import add_clean, add_compare, add_export, add_report, add_status


def add_parsers(commands: Any) -> None:
    """Adds the commands to the subparsers of `rwkv-batch`."""
    add_report(commands)
    add_estimate(commands)
    add_eval(commands)
    add_status(commands)
    add_export(commands)
    add_compare(commands)
    add_inspect(commands)
    add_clean(commands)
    add_init(commands)
    add_schema(commands)
    add_completion(commands)
