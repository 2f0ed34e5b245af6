"""The shape of the code: imports go one way, importing is cheap, and no variable of the environment changes results."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rwkv_batch"

APPLICATION = {"job", "run", "cli", "measure", "integrations"}
LIBRARY = {"llm", "serving", "requests", "output_builder", "model_summary"}
LAYERS = {
    "text": APPLICATION | LIBRARY | {"models"},
    "models": APPLICATION | LIBRARY | {"engine", "text"},
    "engine": APPLICATION | LIBRARY | {"text"},
    "job/input": {"engine", "models", "job/output", "job/report"},
    "job/output": {"engine", "models", "job/report"},
    "job/report": {"engine", "models"},
}
"""Folder → what its modules must not import."""


def imported(path: Path) -> set[str]:
    """What a module imports of rwkv_batch, as paths below it: "engine/request", or a name of its `__init__`."""
    package = path.relative_to(PACKAGE).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                module = (*package[: len(package) - node.level + 1], *module)
            elif module[0] == "rwkv_batch":
                module = module[1:]
            else:
                continue
            found |= {"/".join((*module, alias.name)) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {
                a.name.removeprefix("rwkv_batch.").replace(".", "/") for a in node.names if "rwkv_batch." in a.name
            }
    return found


@pytest.mark.parametrize("folder", LAYERS)
def test_imports_follow_the_arrows(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        backwards = {name for name in imported(path) for other in LAYERS[folder] if f"{name}/".startswith(f"{other}/")}
        assert not backwards, f"{path.relative_to(ROOT)} imports {sorted(backwards)}"


@pytest.mark.parametrize("folder", ["triton_kernels", "cuda_kernels", "cpu_kernels", "kernel_support"])
def test_kernels_import_nothing_but_their_own_package_and_the_shared_one(folder):
    for path in (PACKAGE / folder).glob("*.py"):
        assert {name.split("/")[0] for name in imported(path)} <= {folder, "kernel_support"}, path


@pytest.mark.parametrize("name", ["lm_eval", "lighteval", "inspect_ai"])
def test_a_missing_harness_is_an_extra(name):
    code = f"import sys; sys.modules[{name!r}] = None\nimport rwkv_batch.integrations.{name}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert f"pip install 'rwkv_batch[{name.replace('_', '-')}]'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("module", ["rwkv_batch", "rwkv_batch.cli", "rwkv_batch.sampling_params"])
def test_importing_is_cheap(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'triton', 'pyarrow', 'numpy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_another_package_named_tests_is_not_imported(tmp_path):
    """Benchmarks use helpers of the tests, and packages of other projects install folders named tests by mistake."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").touch()
    code = "import benchmarks.workloads, tests.checkpoints; print(tests.checkpoints.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(ROOT / "tests" / "checkpoints.py"), done.stderr


def test_public_names_are_there():
    import rwkv_batch

    assert all(hasattr(rwkv_batch, name) for name in rwkv_batch.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = rwkv_batch.Nonsense


def test_the_environment_is_read_in_one_place_only():
    """`--shard auto` reads the variables of the launcher; nothing else looks at the environment."""
    readers = set()
    for path in PACKAGE.rglob("*.py"):
        if re.search(r"os\.environ|getenv", path.read_text()):
            readers.add(path.relative_to(PACKAGE).as_posix())
    assert readers == {"run.py"}
