"""rwkv-batch: every command of the project. A command's packages are imported when it is chosen."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__
from .errors import ConfigurationError, RwkvBatchError
from .run import EXIT_USAGE, add_arguments, execute


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["bench"]:  # it has arguments of its own
        from .measure.bench import main as bench

        return bench(given[1:])
    try:
        if given[:1] == ["lm-eval"]:  # another project's command line
            from .integrations.lm_eval import main as lm_eval

            return lm_eval(given[1:])
        options = _parser().parse_args(given)
        return int(options.command(options))
    except RwkvBatchError as error:
        print(f"rwkv-batch: {error}", file=sys.stderr)
        return EXIT_USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rwkv-batch", description="Batch inference for RWKV language models.")
    parser.add_argument("--version", action="version", version=f"rwkv_batch {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a job, or what is left of it")
    add_arguments(run)
    run.set_defaults(command=execute)

    validate = commands.add_parser("validate", help="check a job without running it; the same as run --dry-run")
    add_arguments(validate)
    validate.set_defaults(command=execute, dry_run=True)

    score = commands.add_parser("score", help="run a job with task: score")
    add_arguments(score)
    score.set_defaults(command=lambda options: execute(options, task="score"))

    convert = commands.add_parser("convert", help="write a checkpoint as safetensors")
    convert.add_argument("source", help="a .pth or .safetensors file, or a folder in Hugging Face layout")
    convert.add_argument("target", help="the .safetensors file to write")
    convert.add_argument("--quantization", help="store matrices in this format")
    convert.set_defaults(command=_convert)

    commands.add_parser("bench", help="measure this machine", add_help=False)
    commands.add_parser(
        "lm-eval", help="the lm-evaluation-harness's own command line, with --model rwkv_batch", add_help=False
    )

    report = commands.add_parser("report", help="write a job's report again, and show what it made")
    report.add_argument("path", help="the job's output folder, or its state folder where run.state_dir is set")
    report.add_argument("--show", type=int, default=0, metavar="N", help="print the first N rows of the output")
    report.set_defaults(command=_report)

    doctor = commands.add_parser("doctor", help="what this machine offers: versions, devices, compilers, memory")
    doctor.add_argument("--build", action="store_true", help="also build the CUDA kernels now, with nvcc")
    doctor.add_argument(
        "--check",
        action="store_true",
        help="also check every op on every device, and the demo model: about a minute; the table goes to standard "
        "output, progress to standard error; exit code 1 if anything is wrong. python -m rwkv_batch.checks checks a "
        "choice of devices, backends and ops",
    )
    doctor.add_argument(
        "--at-once",
        type=int,
        metavar="N",
        help="with --check: run N cases at a time; default: as many as cores and free GPU memory allow, at most 16",
    )
    doctor.set_defaults(command=_doctor)
    return parser


def _convert(options: argparse.Namespace) -> int:
    from .models.files.convert import convert

    convert(options.source, options.target, quantization=options.quantization)
    return 0


def _report(options: argparse.Namespace) -> int:
    from .job.output.storage import LocalStorage
    from .job.report.report import find_job, first_rows, summarise, write_report

    folders = find_job(options.path)
    storage = LocalStorage(folders.file("tmp"))
    print("\n".join(summarise(write_report(storage, folders))))
    for record in first_rows(storage, folders, options.show):
        print()
        print("\n".join(f"{name}: {value}" for name, value in record.items() if value is not None))
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
    sys.exit(main())
