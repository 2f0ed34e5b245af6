"""The page report.html of a suite in headless Chromium."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from browser import check_pages, needs_chromium

from rwkv_batch.suite.result import Metric, write_failure, write_result
from rwkv_batch.suite.tables import write_tables

from .results import result

HOSTILE = "<script>parent.hits = hits = 1</script><img src=x onerror='hits = 1'>"

pytestmark = needs_chromium


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_readable_on_a_phone_and_a_desktop(tmp_path: Path, scheme: str) -> None:
    """Checkpoints of a series, tasks with hostile and long names, failures, remarks, tests and changed samples."""
    rng = np.random.default_rng(0)
    for step in range(4):
        for task in ("mmlu", HOSTILE, "long_" * 30):
            cut = Metric("truncated", 0.5, 0.4, 0.6, 40, False)
            ids = [f"{HOSTILE}{'x' * 90}{row}" for row in range(40)]
            write_result(str(tmp_path), result(f"rwkv-{step}", task, rng.integers(0, 2, 40), cut, ids=ids))
    write_failure(str(tmp_path), "rwkv-2", "other", f"{HOSTILE} {'failed' * 90}")
    write_tables(str(tmp_path))
    for one in check_pages([tmp_path / "report.html"], tmp_path, scheme):
        assert one["charts"] == 3 and one["texts"] > 1500
