"""Attacks jobs for a long time: kills at random moments, random bytes in files between runs, and a long job's memory.

    python -m benchmarks.soak --size 1

Runs from the repository root, with the bundled model, in processes of the real command. Each attack prints a line with
its figures; the exit code is 1 where a figure is wrong.

    kills     a process is killed with SIGKILL at a random moment, and the same command is started again, some times
              over; at the end all parts must equal those of an undisturbed run, byte for byte
    damages   bytes of a file of the state folder or of the output are changed while no process runs; the same command
              must end with the same parts, or refuse a damaged job.json with exit code 4
    memory    one long job, and one of a quarter of its rows: the most memory that each of them uses

--size multiplies the number of attacks and rows. --seed chooses other moments and bytes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rwkv_batch.measure.bench import positive_int
from rwkv_batch.measure.table import format_lines
from rwkv_batch.run import EXIT_OK, EXIT_REFUSED, main

from .timing import machine

ROWS = 40
KILLS = 8
"""Kills of each form of a job, for size 1."""
DAMAGES = 30
LONG_ROWS = 4000

Parts = dict[str, bytes]
Forked = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Form:
    """A form of a job.

    Args:
        settings: "section.key=value" each.
        shards: processes that run the job together.
    """

    name: str
    settings: tuple[str, ...] = ()
    shards: int = 1


FORMS = (
    Form("generate", ("output.rows_per_part=7", "output.flush_seconds=0.1")),
    Form("generate, n=3", ("sampling.n=3", "output.rows_per_part=12", "output.flush_seconds=0")),
    Form("one part", ("output.flush_seconds=0.05",)),
    Form("score", ("task=score", "output.rows_per_part=9", "output.flush_seconds=0.1")),
    Form("two shards", ("output.rows_per_part=5", "output.flush_seconds=0.1"), shards=2),
)


@dataclass
class Job:
    """A job in a folder of its own, whose input lies beside it."""

    form: Form
    folder: Path
    rows: int
    starts: int = 0
    ends: Counter[int | None] = field(default_factory=Counter)

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def state(self) -> Path:
        return self.folder / "out.rwkv_batch"

    def write_input(self) -> None:
        self.folder.mkdir(parents=True)
        texts = [f"def function_{row}(argument):\n    return " for row in range(self.rows)]
        columns = {"id": list(range(self.rows)), "prompt": texts}
        if "task=score" in self.form.settings:
            columns = {"context": texts, "choices": [["argument", "None", str(row)] for row in range(self.rows)]}
        pq.write_table(pa.table(columns), self.folder / "input.parquet")
        paths = {"input": {"path": str(self.folder / "input.parquet")}, "output": {"path": str(self.output)}}
        settings: dict[str, Any] = {"model": {"path": "demo"}, "engine": {"device": "cpu"}, **paths}
        if "task=score" not in self.form.settings:
            settings["sampling"] = {"max_tokens": 8, "temperature": 0.8}
        (self.folder / "job.yaml").write_text(json.dumps(settings))

    def start(self) -> list[Any]:
        """Starts the processes of the command."""
        arguments = [str(self.folder / "job.yaml")]
        for setting in self.form.settings:
            arguments += ["-o", setting]
        shards = [["--shard", f"{index}/{self.form.shards}"] for index in range(self.form.shards)]
        log = str(self.folder / "log.txt")
        processes = [Forked.Process(target=_command, args=([*arguments, *shard], log)) for shard in shards]
        for process in processes:
            process.start()
        self.starts += len(processes)
        return processes

    def end(self, processes: Sequence[Any]) -> int:
        """Waits for the processes. Returns the largest exit code."""
        for process in processes:
            process.join()
        self.ends.update(process.exitcode for process in processes)
        return max(process.exitcode for process in processes)

    def parts(self) -> Parts:
        return {path.name: path.read_bytes() for path in sorted(self.output.glob("*.parquet"))}

    def forget(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)
        shutil.rmtree(self.state, ignore_errors=True)

    def undisturbed(self) -> tuple[Parts, float]:
        """The parts of a run that nothing disturbs, and the seconds of another one, when all modules are imported."""
        self.end(self.start())
        self.forget()
        start = time.monotonic()
        code = self.end(self.start())
        if code != EXIT_OK:
            raise RuntimeError(f"{self.form.name}: exit code {code}: {(self.folder / 'log.txt').read_text()[-2000:]}")
        return self.parts(), time.monotonic() - start


def _command(arguments: list[str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = main(arguments)
    Path(f"{log}.usage").write_text(json.dumps(asdict(Usage.of_this_process())))
    sys.exit(code)


def kills(job: Job, count: int, dice: random.Random) -> Iterator[str]:
    """Kills a job `count` times, at most four times before it may end. Yields what is wrong."""
    right, seconds = job.undisturbed()
    done = 0
    while done < count:
        job.forget()
        for _ in range(min(dice.randint(1, 4), count - done)):
            processes = job.start()
            time.sleep(dice.uniform(0, seconds))
            for process in processes:
                process.kill()
            job.end(processes)
            done += 1
            if not job.parts().items() <= right.items():
                yield f"{job.form.name}: a part differs after kill {done}"
        if job.end(job.start()) != EXIT_OK or job.parts() != right:
            yield f"{job.form.name}: the parts differ at the end, after kill {done}"


def damages(job: Job, count: int, dice: random.Random, outcomes: Counter[str]) -> Iterator[str]:
    """Changes bytes of files of a job that is finished, or was killed. Yields what is wrong."""
    right, seconds = job.undisturbed()
    for number in range(count):
        if number % 2:
            job.forget()
            (process,) = job.start()
            time.sleep(dice.uniform(seconds / 3, seconds))
            process.kill()
            job.end([process])
        paths = sorted(path for folder in (job.output, job.state) for path in folder.rglob("*") if path.is_file())
        if not paths:
            continue
        path = dice.choice(paths)
        _damage(path, dice)
        code = job.end(job.start())
        if code == EXIT_REFUSED and path.name == "job.json":
            outcomes["refused"] += 1
            job.forget()
        elif code == EXIT_OK and job.parts() == right:
            outcomes["equal at the end"] += 1
        else:
            outcomes["wrong"] += 1
            yield f"damage {number} of {path.relative_to(job.folder)}: exit code {code}"
            job.forget()


def _damage(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(dice.randint(1, 4) if data else 0):
        data[dice.randrange(len(data))] = dice.randrange(256)
    if dice.random() < 0.2:
        del data[dice.randint(0, len(data)) :]
    path.write_bytes(bytes(data))


@dataclass(frozen=True)
class Usage:
    """What a process of the command has used at its end: its largest memory, and the descriptors that are open."""

    mebibytes: float
    descriptors: int

    @classmethod
    def of_this_process(cls) -> Usage:
        return cls(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(os.listdir("/proc/self/fd")))


def memory(folder: Path, rows: int) -> tuple[Usage, float]:
    """Runs a job of 20 parts. Returns what its process has used, and its seconds."""
    form = Form("long", (f"output.rows_per_part={max(1, rows // 20)}", "output.flush_seconds=1"))
    job = Job(form, folder, rows)
    job.write_input()
    start = time.monotonic()
    if job.end(job.start()) != EXIT_OK:
        raise RuntimeError(f"{form.name}: {(folder / 'log.txt').read_text()[-2000:]}")
    return Usage(**json.loads((folder / "log.txt.usage").read_text())), time.monotonic() - start


def soak(folder: Path, size: int, seed: int) -> Iterator[tuple[list[str], list[str]]]:
    """Runs all attacks. Yields for each its row of the table, and what is wrong."""
    dice = random.Random(seed)
    for number, form in enumerate(FORMS):
        job = Job(form, folder / f"kills-{number}", ROWS)
        job.write_input()
        wrong = list(kills(job, KILLS * size, dice))
        killed = job.ends[-9]
        yield [f"kills, {form.name}", f"{killed} kills, {job.starts} starts", f"{len(wrong)} differ"], wrong
    outcomes: Counter[str] = Counter()
    job = Job(FORMS[0], folder / "damages", ROWS)
    job.write_input()
    wrong = list(damages(job, DAMAGES * size, dice, outcomes))
    words = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
    yield ["damaged files", f"{sum(outcomes.values())} damages", words], wrong
    rows = LONG_ROWS * size
    quarter, _ = memory(folder / "memory-quarter", rows // 4)
    whole, seconds = memory(folder / "memory", rows)
    used = f"{quarter.mebibytes:.0f} MiB with a quarter of the rows, {whole.mebibytes:.0f} MiB with all"
    files = f"{quarter.descriptors} and {whole.descriptors} descriptors"
    grown = whole.mebibytes > 1.2 * quarter.mebibytes or whole.descriptors > quarter.descriptors + 4
    yield ["memory", f"{rows:,} rows in {seconds:.0f} s", f"{used}; {files}"], ["memory grows"] * grown


def command(arguments: Sequence[str] | None = None) -> int:
    """Runs the attacks, and prints the table; exit code 1 where a figure is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=positive_int, default=1, metavar="N", help="N times as many attacks and rows")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="chooses the moments and the bytes")
    options = parser.parse_args(arguments)
    Forked.set_forkserver_preload(["rwkv_batch.run", "rwkv_batch.job.execute", "rwkv_batch.llm"])
    table: list[list[str]] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="rwkv_batch-soak-") as folder:
        for row, problems in soak(Path(folder), options.size, options.seed):
            print("  ".join(row), *problems, sep="\n", flush=True)
            table.append(row)
            wrong += problems
    print("\n" + "\n".join(format_lines(["attack", "number", "outcome"], table, left_columns=3)))
    print(f"\nseed {options.seed}, {json.dumps(machine())}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(command())
