"""Which modules are changed, and which tests should notice."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """Modules of one responsibility.

    Args:
        files: patterns below rwkv_batch/. A module belongs to the first target that has it.
        tests: files or folders below tests/ that are the modules' own, but for what `slow.py` lists.
        wider: further ones, asked where the own tests notice nothing.
    """

    name: str
    files: tuple[str, ...]
    tests: tuple[str, ...]
    wider: tuple[str, ...]


SAMPLER = ("logprobs", "penalties", "philox", "sample", "sampler", "selection", "slot_tables")
TARGETS = (
    Target(
        "sampler",
        tuple(f"engine/{name}.py" for name in SAMPLER),
        ("engine/test_sampler.py", "engine/test_selection.py", "engine/test_penalties.py", "engine/test_philox.py"),
        ("engine", "test_llm.py", "test_constraint.py", "kernels/test_triton_sample.py"),
    ),
    Target(
        "engine",
        ("engine/*.py",),
        ("engine",),
        ("test_llm.py", "test_constraint.py", "test_checks.py", "test_demo.py", "jobs/test_demo_jobs.py", "models"),
    ),
    Target(
        "commit",
        (
            "data/commit.py",
            "data/storage.py",
            "data/writer.py",
            "data/results.py",
            "data/scores.py",
            "output_builder.py",
        ),
        (
            "jobs/test_crash.py",
            "jobs/test_writer.py",
            "jobs/test_output.py",
            "jobs/test_results.py",
            "jobs/test_resume.py",
        ),
        ("jobs",),
    ),
    Target(
        "resume",
        ("data/state.py", "data/fingerprint.py", "data/plan.py", "data/history.py"),
        ("jobs/test_plan.py", "jobs/test_resume.py", "jobs/test_upgrades.py", "jobs/test_refusals.py"),
        ("jobs",),
    ),
    Target(
        "requests",
        ("requests.py", "rows.py", "serving.py", "output_builder.py", "sampling_params.py"),
        ("test_serving.py", "test_llm.py", "test_sampling_params.py", "test_constraint.py"),
        ("jobs", "engine", "integrations"),
    ),
)
