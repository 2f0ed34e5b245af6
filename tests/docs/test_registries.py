"""Pages name what is registered by being a file of the package: versions, ops, weight formats and harnesses."""

from __future__ import annotations

import re

import pytest

from docs.pages import ROOT
from rwkv_batch.checks.target import specs
from rwkv_batch.integrations import inspect_ai, lighteval_arguments
from rwkv_batch.integrations.lm_eval import RwkvBatchLM
from rwkv_batch.integrations.model_arguments import adapter_arguments
from rwkv_batch.job.input.columns import ROLES
from rwkv_batch.job.input.formats import FORMATS
from rwkv_batch.models.architecture import architectures
from rwkv_batch.models.matrices.quantization import QUANTIZATIONS
from rwkv_batch.sampling_params import SAMPLING_FIELDS
from rwkv_batch.text.chat import format_names
from rwkv_batch.text.chat_formats import THOUGHTS


def first_cells(page: str) -> str:
    """The first cells of all rows of the tables of a page."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    return "\n".join(line.split("|")[1] for line in lines if line.startswith("|"))


def test_every_version_is_in_the_table_of_versions() -> None:
    own = [version for version in architectures() if version.__module__.startswith("rwkv_batch.")]
    numbers = {re.sub(r"rwkv([\d.]+).*", r"\1", version.name) for version in own}
    listed = re.findall(r"[\d.]*\d", first_cells("how-to/models.md"))
    assert numbers - {*listed} == set()


def test_every_op_of_the_package_is_in_the_table_of_ops() -> None:
    own = {name for name, spec in specs().items() if spec.definition.__module__.startswith("rwkv_batch.")}
    listed = re.findall(r"`(\w+)`", first_cells("explanation/kernels.md"))
    assert own - {*listed} == set()


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_every_weight_format_is_in_the_table_of_formats(name: str) -> None:
    assert f"`{name}`" in first_cells("how-to/models.md")


def test_every_extension_of_an_input_format_is_in_the_table_of_formats() -> None:
    cells = first_cells("reference/input-formats.md")
    assert [one for table in FORMATS.values() for one in table.extensions if f"`{one}`" not in cells] == []


def test_every_harness_has_a_section() -> None:
    page = (ROOT / "docs/how-to/evaluation.md").read_text(encoding="utf-8")
    extras = re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    names = {path.stem.replace("_", "-") for path in (ROOT / "rwkv_batch/integrations").glob("*.py")} & set(extras)
    names.remove("ray")  # is no harness, and has a page of its own
    assert len(names) == 3
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("lm-evaluation-harness", adapter_arguments(RwkvBatchLM)),
        ("lighteval", [*lighteval_arguments.OWN_ARGUMENTS, *lighteval_arguments.OF_LIGHTEVAL]),
        ("Inspect", [*inspect_ai.OWN_ARGUMENTS]),
    ],
)
def test_every_argument_of_an_adapter_is_in_the_section_of_its_harness(section: str, names: list[str]) -> None:
    page = (ROOT / "docs/how-to/evaluation.md").read_text(encoding="utf-8")
    text = page.split(f"\n## {section}\n")[1].split("\n## ")[0]
    assert len(names) >= 4
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_chat_format_and_way_to_think_is_in_a_table() -> None:
    cells = first_cells("how-to/sampling-and-chat.md")
    assert [name for name in format_names() if name != "auto" and f"`{name}`" not in cells] == []
    assert [name for name in THOUGHTS if f"`{name}`" not in cells] == []


def test_every_role_of_a_column_is_on_the_page_about_jobs() -> None:
    page = (ROOT / "docs/how-to/jobs.md").read_text(encoding="utf-8")
    assert [role for role in ROLES if role not in SAMPLING_FIELDS and f"`{role}`" not in page] == []
