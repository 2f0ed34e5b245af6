"""Globs mean the paths that people expect, and matching ends."""

from __future__ import annotations

import pytest

from rwkv_batch.job.input.glob import Glob, split_glob


@pytest.mark.parametrize(
    ("glob", "means", "others"),
    [
        ("*.parquet", ["a.parquet", ".parquet"], ["a.parquet.tmp", "b/a.parquet", "a_parquet"]),
        ("*/a?.p", ["x/ab.p"], ["ab.p", "x/a.p", "x/y/ab.p", "x/a/.p"]),
        ("**/*.p", ["a.p", "x/a.p", "x/y/a.p"], ["a.q", "x/a.q"]),
        ("x/**", ["x/a", "x/y/a"], ["y/a"]),
        ("**/x/**/a", ["x/a", "q/x/a", "q/x/y/z/a"], ["a", "q/a", "x/b"]),
        ("**/**/a", ["a", "x/a", "x/y/z/a"], ["b"]),
        ("[a-c]1", ["a1", "c1"], ["d1", "a2"]),
        ("[!a-c]1", ["d1"], ["a1", "/1"]),
        ("a[", ["a["], ["a"]),
        ("a+(b).c", ["a+(b).c"], ["aab.c"]),
    ],
)
def test_what_a_glob_means(glob, means, others):
    found = Glob(glob)
    assert [path for path in (*means, *others) if found.matches(path)] == means


@pytest.mark.parametrize(
    "glob", ["*a" * 30, "[ab]*" * 30 + "c", "**/*a" * 30, "**/" * 60 + "x", "a**b" * 30, "?*" * 30 + "c"]
)
def test_matching_ends(glob):
    found = Glob(glob)
    assert not found.matches("a" * 60 + "b")
    assert not found.matches("a/" * 60 + "b")


def test_the_folder_before_the_first_wildcard():
    folder, glob = split_glob("/data/x*/b.p")
    assert folder == "/data" and glob is not None and glob.matches("x1/b.p")
    assert split_glob("*.p")[0] == "." and split_glob("/*.p")[0] == "/"
    assert split_glob("/data/a.p") == ("/data/a.p", None)
