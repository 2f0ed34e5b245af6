"""Which modules are changed, and which tests should notice."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """Modules of one responsibility.

    Args:
        files: patterns below rwkv_batch/. A module belongs to the first target that has it.
        tests: files or folders below tests/ that are the modules' own.
        wider: further ones, asked where the own tests notice nothing.
    """

    name: str
    files: tuple[str, ...]
    tests: tuple[str, ...]
    wider: tuple[str, ...]


SAMPLER = ("logprobs", "penalties", "philox", "sample", "sampler", "selection", "slot_tables")
QUEUE = ("admission", "prefix", "scheduler", "sequence", "shared_lengths", "snapshots", "source")
TARGETS = (
    Target(
        "sampler",
        tuple(f"engine/{name}.py" for name in SAMPLER),
        (
            "engine/test_sampler.py",
            "engine/test_selection.py",
            "engine/test_penalties.py",
            "engine/test_philox.py",
            "engine/test_running_ahead.py",
        ),
        ("engine/test_engine.py", "test_llm.py", "test_constraint.py", "kernels/test_cpu_sampling.py"),
    ),
    Target(
        "queue",
        tuple(f"engine/{name}.py" for name in QUEUE),
        ("engine/test_engine.py", "engine/test_abort.py", "engine/test_out_of_memory.py", "engine/test_snapshots.py"),
        ("engine/test_running_ahead.py", "engine/test_occupancy.py", "test_llm.py", "test_serving.py"),
    ),
    Target(
        "engine",
        ("engine/*.py",),
        (
            "engine/test_engine.py",
            "engine/test_running_ahead.py",
            "engine/test_abort.py",
            "engine/test_out_of_memory.py",
        ),
        ("engine", "test_llm.py", "test_serving.py", "test_constraint.py", "models/test_strategy.py"),
    ),
    Target(
        "commit",
        ("data/commit.py", "data/storage.py", "data/writer.py", "data/results.py", "data/scores.py"),
        (
            "jobs/test_writer.py",
            "jobs/test_results.py",
            "jobs/test_resume.py",
            "jobs/test_output.py",
            "jobs/test_crash.py",
        ),
        ("jobs",),
    ),
    Target(
        "resume",
        ("data/state.py", "data/fingerprint.py", "data/plan.py", "data/stream.py", "data/history.py"),
        ("jobs/test_plan.py", "jobs/test_resume.py", "jobs/test_refusals.py", "jobs/test_upgrades.py"),
        ("jobs",),
    ),
    Target(
        "text",
        ("stop_strings.py", "detokenizer.py"),
        ("test_stop_strings.py", "test_detokenizer.py"),
        ("test_llm.py", "test_serving.py", "jobs/test_demo_jobs.py"),
    ),
    Target(
        "requests",
        ("requests.py", "serving.py", "turns.py", "prefetch.py", "rows.py", "sampling_params.py"),
        ("test_llm.py", "test_sampling_params.py", "test_constraint.py", "test_serving.py"),
        ("engine/test_abort.py", "jobs", "integrations"),
    ),
)
