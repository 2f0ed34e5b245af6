"""`make mutants`: the changes that it makes, and the tests that notice them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from mutation import __main__ as mutation
from mutation.edits import edits, is_change
from mutation.targets import TARGETS, Target

ROOT = Path(__file__).parents[2]


def changes(source: str, kind: str) -> set[str]:
    """Returns the results of all edits of one kind."""
    return {edit.apply(source) for edit in edits(source) if edit.kind == kind and is_change(source, edit)}


@pytest.mark.parametrize(
    ("kind", "source", "expected"),
    [
        ("comparison", "a < b", {"a <= b", "a >= b"}),
        ("comparison", "(a) is not (b) in c", {"(a) is (b) in c", "(a) is not (b) not in c"}),
        ("arithmetic", "a + b * 'ä'", {"a - b * 'ä'", "a + b + 'ä'"}),
        ("arithmetic", "a //= b", {"a *= b"}),
        ("boolean", "x = a and (b or c)", {"x = a or (b or c)", "x = a and (b and c)"}),
        ("operand", "x = a and b", {"x = ((a))", "x = ((b))"}),
        ("not", "x = not (a == b)", {"x = (a == b)"}),
        ("not", "[a for a in b if a.c]", {"[a for a in b if (not (a.c))]"}),
        ("constant", "'ä', 1", {"'ä', 2", "'ä', 0"}),
        ("constant", "x: Literal[2] = True", {"x: Literal[2] = False"}),
        ("swap", "f(a, b, *c)", {"f(b, a, *c)", "f(a, *c, b)"}),
        ("swap", "max(a, b)", set()),
        ("keyword", "f(a, b=1, c=(2))", {"f(a,  c=(2))", "f(a, b=1)"}),
        ("statement", "def f():\n    '''Text.'''\n    g()\n", {"def f():\n    '''Text.'''\n    pass\n"}),
        ("statement", "a.b, c = d\ne = 1\nraise F(1 + 1)", {"pass\ne = 1\nraise F(1 + 1)", "a.b, c = d\ne = 1\npass"}),
        ("jump", "for a in b:\n    break", {"for a in b:\n    continue"}),
        ("arithmetic", "assert a + b\nf'{c + d}'\nRow = int | str", set()),
    ],
)
def test_edits(kind, source, expected):
    assert changes(source, kind) == expected


def test_a_change_is_known_by_its_lines_and_not_by_its_place():
    source = "class A:\n    def f(self):\n        return g(\n            1\n        )\n"
    moved = "# One more line.\n" + source
    (edit,), (other,) = ([e for e in edits(text) if e.kind == "constant" and e.text == "2"] for text in (source, moved))
    assert (edit.scope, edit.change(source)) == (other.scope, other.change(moved)) == ("A.f", "1 → 2")
    assert (edit.line(source), other.line(moved)) == (4, 5)


def test_every_module_of_the_targets_gives_changes_that_can_be_read():
    for mutant in mutation.draw(seed=1, number=100, only=""):
        ast.parse(mutant.edit.apply(mutant.source))
    found = {mutant.target.name for mutant in mutation.all_mutants()}
    assert found == {target.name for target in TARGETS}


def test_a_seed_draws_the_same_changes():
    first, again, other = (mutation.draw(seed, 20, "requests") for seed in (3, 3, 4))
    assert first == again != other
    assert {mutant.target.name for mutant in first} == {"requests"}


def test_changes_are_drawn_from_several_files():
    drawn = mutation.draw(0, 40, "job/plan.py,engine/prefix.py")
    assert {mutant.file for mutant in drawn} == {"rwkv_batch/job/plan.py", "rwkv_batch/engine/prefix.py"}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_modules_and_tests_of_the_targets_are_there(target):
    assert not [pattern for pattern in target.files if not [*(ROOT / "rwkv_batch").glob(pattern)]]
    assert not [test for test in (*target.tests, *target.wider) if not (ROOT / "tests" / test).exists()]


def test_listed_survivors_are_changes_of_the_present_code():
    listed = mutation.survivors()
    stale = listed.keys() - {mutant.key for mutant in mutation.all_mutants()}
    assert not stale, "the code has changed: take these out of survivors.yaml, or write down how they read now"
    assert all(survivor.reason.strip() for survivor in listed.values())


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Makes a project of a module, a test of its own and a wider one; returns the changes by their text."""
    files = {
        "rwkv_batch/__init__.py": "",
        "rwkv_batch/sums.py": "def add(a, b):\n    return a + b\n\n\ndef at_least(a, b):\n    return a >= b\n\n\n"
        "def count(n):\n    while n > 0:\n        n -= 1\n    return n\n",
        "tests/test_sums.py": "from rwkv_batch.sums import *\n\n\ndef test_add():\n    assert add(1, 2) == 3\n\n\n"
        "def test_count():\n    assert count(2) == 0\n",
        "tests/wide.py": "from rwkv_batch.sums import *\n\n\ndef test_wide():\n    assert at_least(2, 1)\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(mutation, "ROOT", tmp_path)
    monkeypatch.setattr(mutation, "TARGETS", (Target("sums", ("sums.py",), ("test_sums.py",), ("wide.py",)),))
    return {mutant.edit.change(mutant.source): mutant for mutant in mutation.all_mutants()}


def test_what_is_noticed_and_by_which_test(project):
    wanted = ["return a + b → return a - b", "return a >= b → return a < b", "return a >= b → return a > b"]
    found = dict(mutation.run([project[change] for change in wanted], jobs=2))
    assert [found[project[change]] for change in wanted] == [
        "tests/test_sums.py::test_add",
        "tests/wide.py::test_wide",
        None,  # no test has equal numbers
    ]
    assert "return a + b\n" in (mutation.ROOT / "rwkv_batch/sums.py").read_text()


def test_a_change_that_never_ends_is_noticed(project, tmp_path):
    mutant = project["n -= 1 → n -= 0"]
    copy = mutation.Copy(tmp_path / "copy", {tuple(tests): 5.0 for tests in mutation.stages(mutant)})
    assert copy.try_out(mutant) == "no end after 5 s"


def test_tests_that_fail_anyway_are_an_error(project, tmp_path):
    (tmp_path / "tests/test_sums.py").write_text("def test_broken():\n    assert False\n")
    with pytest.raises(RuntimeError, match=r"without any change: tests/test_sums.py::test_broken"):
        dict(mutation.run([project["return a + b → return a - b"]], jobs=1))
