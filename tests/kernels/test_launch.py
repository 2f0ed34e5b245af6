"""Prepared launches: each reaches the card as Triton's own launch of the same arguments would."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from kernels.test_launch_path import CARDS, OLDEST, is_installed, run_worker

FIRST_OF_A_KIND = {
    "first",
    "unaligned",
    "a tensor for None",
    "other dtype",
    "number that 16 does not divide",
    "one",
    "64 bits",
    "other constant",
    "other option",
    "other device",
}


def assert_prepared(version: str | None) -> None:
    found = {one["case"]: one for one in run_worker("prepared_worker.py", version)}
    assert all(one["ok"] for one in found.values()), found
    assert {case for case, one in found.items() if one["by_triton"]} == FIRST_OF_A_KIND
    places = {case: one["compilation"] for case, one in found.items()}
    assert (
        places["first"] == places["same"] == places["other tensors, grid and number"] == places["the first once more"]
    )
    others = FIRST_OF_A_KIND - {"first", "other device"}
    assert len({places[case] for case in others} | {places["first"]}) == len(others) + 1, places


@pytest.mark.timeout(300)
def test_prepared_launches():
    assert_prepared(OLDEST)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", [*CARDS, "3.7.0", "3.8.0", "3.9.0"])
def test_prepared_launches_of_each_version(version):
    if version is not None and not is_installed(version):
        pytest.skip(f"triton {version} is not installed")
    assert_prepared(version)
