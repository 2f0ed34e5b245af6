"""The number of threads for matrix products: at most the number of usable cores."""

import os

import pytest
import torch

from rwkv_batch import threads


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64), ("9900000 100000", 64)]
)
def test_a_quota_limits_the_usable_cores(quota, cores, tmp_path, monkeypatch):
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    monkeypatch.setattr(threads, "_QUOTA", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert threads.usable_cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("150000", 2), ("-1", 64)])
def test_a_quota_of_old_control_groups_limits_the_usable_cores(quota, cores, tmp_path, monkeypatch):
    files = tmp_path / "quota", tmp_path / "period"
    for file, text in zip(files, (quota, "100000"), strict=True):
        file.write_text(text + "\n")
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "none")
    monkeypatch.setattr(threads, "_OLD_QUOTA", files)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert threads.usable_cores() == cores


def test_threads_are_limited_and_never_raised(monkeypatch):
    torch.set_num_threads(3)
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    assert threads.limit_threads() == torch.get_num_threads() == 3
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    assert threads.limit_threads() == torch.get_num_threads() == 2


@pytest.mark.parametrize(("processes", "cores"), [(1, 64), (8, 8), (7, 9), (100, 1)])
def test_processes_divide_the_cores(processes, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "none")
    monkeypatch.setattr(threads, "_OLD_QUOTA", (tmp_path / "none", tmp_path / "none"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(threads, "_num_processes", 1)
    threads.share_cores(processes)
    assert threads.usable_cores() == cores
