"""The command `rwkv-batch`. A command's packages are imported when the command is chosen, so that help is fast."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from . import __version__
from .commands.parsers import add_parsers
from .errors import ConfigurationError, RwkvBatchError, one_of
from .job.ending import exit_with
from .job.messages import did_you_mean, printable
from .job.stopping import EXIT_KILLED
from .job.streams import lasting_streams
from .run import DESCRIPTION, EXIT_INTERNAL, EXIT_USAGE, add_arguments, execute, help_with

COMMANDS = (
    "run",
    "validate",
    "score",
    "report",
    "estimate",
    "eval",
    "status",
    "export",
    "compare",
    "inspect",
    "clean",
    "init",
    "schema",
    "completion",
    "convert",
    "doctor",
    "bench",
    "lm-eval",
)

READS = {
    "report": "path",
    "status": "out",
    "export": "out",
    "compare": "out_a",
    "inspect": "path",
    "clean": "out",
    "init": "data",
    "convert": "source",
    "doctor": "",
}
"""Command that loads libraries before it prints anything → its argument that names what it reads. The others say
themselves what they do, or need no libraries."""
SLOW = {"inspect", "convert", "doctor", "bench", "lm-eval"}
"""Commands that load torch: several seconds on a busy machine."""

CONVERTED_FORMATS = ("int8",)
"""Weight formats that `convert` writes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name (those of the process where None), and returns the exit code."""
    with lasting_streams():
        return _main(list(sys.argv[1:] if arguments is None else arguments))


def command() -> NoReturn:
    """The program `rwkv-batch`."""
    exit_with(main)


def _main(given: list[str]) -> int:
    if given[:1] == ["bench"]:  # it has a parser of its own
        _announce("bench")
        from .measure.bench import main as bench

        return bench(given[1:])
    try:
        if given[:1] == ["lm-eval"]:  # the harness has a command line of its own
            _announce("lm-eval")
            from .integrations.lm_eval import main as lm_eval

            return lm_eval(given[1:])
        parser = _parser()
        if not given:
            parser.print_help(sys.stderr)
            return EXIT_USAGE
        _check_command(given[0])
        options = parser.parse_args(given)
        if given[0] in READS:
            _announce(given[0], str(getattr(options, READS[given[0]], "")))
        return int(options.command(options))
    except RwkvBatchError as error:
        return _fail(EXIT_USAGE, str(error))
    except OSError as error:  # such as a full disk
        return _fail(EXIT_INTERNAL, str(error))
    except KeyboardInterrupt:  # of a command without a handling of its own
        return _fail(EXIT_KILLED, "interrupted")


def _announce(name: str, what: str = "") -> None:
    """Prints a first line on standard error, before libraries are loaded; of a fast command only on a terminal.

    Args:
        what: the command reads; "" for nothing.
    """
    if name in SLOW or sys.stderr.isatty():
        reading = f", and reading {printable(what)}" if what else ""
        print(f"rwkv-batch {name}: loading libraries{reading}", file=sys.stderr, flush=True)


def _fail(code: int, message: str) -> int:
    print(f"rwkv-batch: {printable(message)}", file=sys.stderr)
    return code


def _check_command(name: str) -> None:
    """Raises ConfigurationError where the first argument is neither an option nor a command."""
    if name.startswith("-") or name in COMMANDS:
        return
    is_job = name.endswith((".yaml", ".yml"))
    hint = f"; to run a job: rwkv-batch run {name}" if is_job else did_you_mean(name, COMMANDS)
    raise ConfigurationError(f"got {name!r}, expected a command: {one_of(COMMANDS)}{hint}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rwkv-batch",
        description="Batch inference for RWKV language models: prompts from files in, completions or scores out.",
        epilog="rwkv-batch COMMAND --help explains a command. Begin with: rwkv-batch run jobs/demo.yaml",
    )
    parser.add_argument("--version", action="version", version=f"rwkv_batch {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_job_commands(commands)
    add_parsers(commands)
    _add_convert(commands)
    _add_doctor(commands)
    commands.add_parser("bench", help="measure how fast a model is on this machine", add_help=False)
    commands.add_parser(
        "lm-eval", help="evaluate a model: the lm-evaluation-harness, with --model rwkv_batch", add_help=False
    )
    return parser


def _add_job_commands(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="run a job, or what is left of it",
        description=DESCRIPTION,
        **help_with("rwkv-batch run jobs/demo.yaml -o sampling.max_tokens=32"),
    )
    add_arguments(run)
    run.set_defaults(command=execute)

    validate = commands.add_parser(
        "validate",
        help="check a job and show its first prompt, without running it",
        description="Check a job file, its input and its model, and show the plan, the memory and the first prompt.\n"
        "Nothing is written. The same as run --dry-run.",
        **help_with("rwkv-batch validate jobs/demo.yaml"),
    )
    add_arguments(validate)
    validate.set_defaults(command=execute, dry_run=True)

    score = commands.add_parser(
        "score",
        help="run a job with task: score, whatever the file says",
        description="Run a job that computes log-likelihoods of continuations. The same as run -o task=score.",
        **help_with("rwkv-batch score jobs/mmlu.yaml --limit 10"),
    )
    add_arguments(score)
    score.set_defaults(command=lambda options: execute(options, task="score"))


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser(
        "convert",
        help="write a model as one .safetensors file, quantized on request",
        description="Write a model as one .safetensors file with the names of RWKV's own checkpoints, one matrix in\n"
        "memory at a time.",
        epilog="example:  rwkv-batch convert model.pth model-int8.safetensors --quantization int8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument("source", help="a .pth or .safetensors file, a folder in Hugging Face layout, or hf://…")
    convert.add_argument("target", help="the .safetensors file to write")
    convert.add_argument(
        "--quantization",
        metavar="FORMAT",
        help=f"store the large matrices in this weight format: {one_of(CONVERTED_FORMATS)}; default: as they are",
    )
    convert.set_defaults(command=_convert)


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="show what this machine offers, and check its kernels",
        description="Show versions, devices, compilers and memory of this machine.",
        epilog="example:  rwkv-batch doctor --check\n\nexit code 1: --check has found something wrong",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("--build", action="store_true", help="also build the CUDA kernels now, with nvcc")
    doctor.add_argument(
        "--check",
        action="store_true",
        help="also check every op on every device against its definition, and the demo model: about a minute. The "
        "table goes to standard output, progress to standard error. python -m rwkv_batch.checks checks a choice of "
        "devices, backends and ops",
    )
    doctor.add_argument(
        "--at-once",
        type=int,
        metavar="N",
        help="with --check: run N cases at a time; default: as many as cores and free GPU memory allow, at most 16",
    )
    doctor.set_defaults(command=_doctor)


def _convert(options: argparse.Namespace) -> int:
    from .models.files.convert import convert

    convert(options.source, options.target, quantization=options.quantization)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from .measure.doctor import build_kernels, check, findings, format_findings

    if options.at_once is not None and not options.check:
        raise ConfigurationError("--at-once: got it without --check, to which it belongs")
    print(format_findings([*findings(), *(build_kernels() if options.build else ())]))
    if not options.check:
        return 0
    print()
    return 0 if check(at_once=options.at_once) else 1


if __name__ == "__main__":
    command()
