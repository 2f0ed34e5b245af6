"""The shape of the code: which folder imports which, how tests mirror the package, sizes, and what an import costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from import_graph import ROOT, cycle, imports, modules

PACKAGE = ROOT / "rwkv_batch"
KERNELS = ("triton_kernels", "cuda_kernels", "cpu_kernels")
BASICS = {
    "call_lock",
    "checksum",
    "dtypes",
    "errors",
    "inputs",
    "kernel_module",
    "message_process",
    "ops",
    "object_stores",
    "outputs",
    "prefetch",
    "process",
    "process_pool",
    "progress_bar",
    "results",
    "sampling_fields",
    "sampling_params",
    "serving_call",
    "settings",
    "structured_outputs",
    "threads",
    "transfer",
    "user_files",
    "vllm_arguments",
}
"""Modules at the top of rwkv_batch, and a folder, that import only each other; all but the kernel packages may import
them.
"""
LIBRARY = {
    "arguments",
    "chat_calls",
    "llm",
    "load_engine",
    "model_summary",
    "output_builder",
    "requests",
    "rows",
    "score_requests",
    "serving",
}
"""The other modules at the top that do the library's work."""
MODELS = {"models", "models/files", "models/matrices"}
MAY_IMPORT: dict[str, set[str]] = {
    "kernel_support": set(),
    "kernel_module": {"kernel_support"},
    **{name: {"kernel_support"} for name in KERNELS},
    "text": {"engine", "cpu_kernels"},
    "models/files": MODELS | {"kernel_support"},
    "models/matrices": {"models/files"},
    "models": MODELS,
    "engine": MODELS | {"cpu_kernels"},
    "roofline": MODELS | {"cuda_kernels", "engine", "kernel_support", "triton_kernels"},
    **{name: LIBRARY | MODELS | {"engine", "text"} for name in LIBRARY},
    "llm": LIBRARY | MODELS | {"data_parallel", "engine", "text"},
    "data_parallel": {"engine", "llm", "model_summary", "models", "output_builder", "rows", "serving"},
    "demo": {"llm"},
    "job/input": {"job", "rows", "text"},
    "job/output": {"job", "job/input", "kernel_support", "rows"},
    "job/report": {"", "job", "job/input", "job/output"},
    "job/workers": {"engine", "job", "job/input", "job/output", "job/report", "llm", "models", "rows"},
    "job": {
        "",
        "job/input",
        "job/output",
        "job/report",
        "job/workers",
        "llm",
        "models/files",
        "models/matrices",
        "requests",
        "rows",
        "score_requests",
        "text",
    },
    "integrations": {"", "arguments", "engine", "llm", "rows", "text"},
    "checks": {*KERNELS, *MODELS, "demo", "engine", "llm", "measure"},
    "measure": {*KERNELS, *MODELS, "", "checks", "engine", "model_summary", "run"},
    "run": {"job", "job/output"},
    "commands": {
        "",
        "engine",
        "job",
        "job/input",
        "job/output",
        "job/report",
        "job/workers",
        "llm",
        "measure",
        "model_summary",
        *MODELS,
        "requests",
        "roofline",
        "rows",
        "suite",
        "text",
        "triton_kernels",
    },
    "suite": {
        "",
        "commands",
        "integrations",
        "job",
        "job/input",
        "job/report",
        "llm",
        "model_summary",
        "models/files",
        "text",
    },
    "cli": {"", "commands", "integrations", "job", "job/output", "job/report", "measure", "models/files", "run"},
    "": {"job", "llm"},
}
"""Folder of rwkv_batch, or module at its top → folders and modules that it may import besides `BASICS`.

Imports inside functions count, imports for type checkers do not. "" is `rwkv_batch/__init__.py`.
"""


def place(path: Path) -> str:
    """Returns the folder of a module below rwkv_batch, or the name of a module at the top."""
    inner = path.relative_to(PACKAGE)
    return inner.parent.as_posix() if inner.parent.parts else inner.stem.replace("__init__", "")


KNOWN = modules("rwkv_batch", "rwkv_batch/triton_kernels", "rwkv_batch/cuda_kernels")


def test_every_module_has_a_place():
    assert {place(path) for path in KNOWN.values()} == BASICS | MAY_IMPORT.keys()


@pytest.mark.parametrize("folder", sorted(BASICS | MAY_IMPORT.keys()))
def test_imports_follow_the_arrows(folder):
    allowed = {folder} | MAY_IMPORT.get(folder, set()) | (set() if folder in KERNELS else BASICS)
    for name, path in KNOWN.items():
        if place(path) == folder:
            others = {place(KNOWN[other]) for other in imports(name, KNOWN, in_functions=True)}
            assert others <= allowed, f"{path.relative_to(ROOT)} must not import {sorted(others - allowed)}"


@pytest.mark.parametrize("known", [KNOWN, modules("benchmarks")], ids=["rwkv_batch", "benchmarks"])
def test_no_modules_import_each_other_in_a_circle(known):
    assert not cycle({name: imports(name, known, in_functions=False) for name in known})


def test_benchmarks_do_not_need_the_tests():
    known = modules("benchmarks", "tests")
    for name in known:
        if name.startswith("benchmarks."):
            others = imports(name, known, in_functions=True)
            assert not any(other.startswith("tests.") for other in others), name


def test_a_circle_is_found():
    assert cycle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
    assert not cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


MIRRORED_ELSEWHERE = {
    "cpu_kernels": "kernels",
    "kernel_support": "kernels",
    "demo": "test_demo.py",
    "data_files": "text",
}
"""Folder of rwkv_batch without a folder of its name in tests → where its tests are."""
TESTS_OF_OTHERS = {"kernels", "fakes", "llm", "kernels/cuda_host", "versions", "benchmarks", "docs", "mutation"}
"""Folders of tests for other things: fakes, `llm.py`, kernel packages, versions, benchmarks/, docs/ and mutants."""


def folders(root: Path) -> set[str]:
    """Lists the folders below one that git tracks, without those of data and of C++ sources."""
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout
    found = {parent.as_posix() for line in listed.splitlines() for parent in Path(line).parents}
    return {name for name in found if name != "." and "data" not in name.split("/") and not name.endswith("csrc")}


def test_tests_mirror_the_package():
    own = folders(PACKAGE) - MIRRORED_ELSEWHERE.keys()
    assert folders(ROOT / "tests") - TESTS_OF_OTHERS == own
    assert all((ROOT / "tests" / place).exists() for place in (*MIRRORED_ELSEWHERE.values(), *TESTS_OF_OTHERS))


MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_PARAMETERS = 400, 60, 8
LONG_FILES: set[str] = set()
MANY_PARAMETERS = {
    "rwkv_batch/engine/engine.py Engine.__init__",
    "rwkv_batch/integrations/lm_eval.py RwkvBatchLM.__init__",
    "rwkv_batch/llm.py LLM.__init__",
    "rwkv_batch/chat_calls.py ChatCalls.chat",
}
"""Functions of the public interface, and of the engine, that name every setting. Ops and kernels are left out."""
OPS = {path.stem for folder in KERNELS for path in (PACKAGE / folder).glob("*.py")}


def sources() -> dict[str, str]:
    """Returns path in the repository → text of every Python file."""
    folders = ("rwkv_batch", "triton_kernels", "cuda_kernels", "benchmarks", "tests")
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in modules(*folders).values()}


@cache
def functions(text: str) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of a module with its name; a method's name has its class's in front."""

    def inside(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield prefix + child.name, child
            yield from inside(child, f"{child.name}." if isinstance(child, ast.ClassDef) else prefix)

    return [*inside(ast.parse(text), "")]


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """True for a function that Triton compiles."""
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_no_file_is_too_long():
    assert {path for path, text in sources().items() if len(text.splitlines()) > MOST_LINES} == LONG_FILES


def test_no_function_is_too_long():
    found = {
        f"{path} {name}"
        for path, text in sources().items()
        for name, function in functions(text)
        if (function.end_lineno or 0) - function.lineno >= MOST_LINES_OF_A_FUNCTION and not is_kernel(function)
    }
    assert found == set()


def test_no_function_has_too_many_parameters():
    found = {
        f"{path} {name}"
        for path, text in sources().items()
        for name, function in functions(text)
        if num_parameters(function) > MOST_PARAMETERS and name not in OPS and not is_kernel(function)
    }
    assert found == MANY_PARAMETERS


EXTRAS = re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
HARNESSES = sorted(
    path.stem for path in (PACKAGE / "integrations").glob("*.py") if path.stem.replace("_", "-") in EXTRAS
)
"""Modules of `integrations` that are named like an extra, which is named like the package that they are for."""


def test_every_harness_is_found():
    assert HARNESSES == ["inspect_ai", "lighteval", "lm_eval", "ray"]


@pytest.mark.parametrize("name", HARNESSES)
def test_a_missing_harness_is_an_extra(name):
    code = f"import sys; sys.modules[{name!r}] = None\nimport rwkv_batch.integrations.{name}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert f"pip install 'rwkv_batch[{name.replace('_', '-')}]'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("module", ["rwkv_batch", "rwkv_batch.cli", "rwkv_batch.sampling_params"])
def test_importing_is_cheap(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'triton', 'pyarrow', 'numpy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_job_s_own_process_imports_no_torch():
    """A process that only reads rows, writes parts and hands units to workers starts in half a second."""
    modules = ("job.execute", "requests", "score_requests", "output_builder", "engine.stats", "job.workers.coordinator")
    code = f"import sys, {', '.join(f'rwkv_batch.{module}' for module in modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_public_names_are_there():
    import rwkv_batch

    assert all(hasattr(rwkv_batch, name) for name in rwkv_batch.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = rwkv_batch.Nonsense


def test_the_environment_is_read_in_two_places_only():
    """`--shard auto` reads the variables of the launcher, a job file those that it names, and the cache
    folder follows XDG_CACHE_HOME; nothing else does.
    """
    readers = set()
    for path in PACKAGE.rglob("*.py"):
        if re.search(r"os\.environ|getenv", path.read_text()):
            readers.add(path.relative_to(PACKAGE).as_posix())
    assert readers == {"run.py", "job/yaml_file.py", "kernel_support/cache.py"}


def test_a_fixture_of_a_package_ends_with_its_folder():
    """In a folder that is no package, a fixture of this scope lasts until all tests have ended."""
    users = {path.parent for path in (ROOT / "tests").rglob("*.py") if re.search(r'scope="package"', path.read_text())}
    assert [folder.name for folder in users if not (folder / "__init__.py").exists() and folder.name != "tests"] == []
