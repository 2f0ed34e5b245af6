"""The page report.html in headless Chromium: on a phone and a desktop, light and dark."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from browser import check_pages, chromium, needs_chromium

from ..conftest import Job

pytestmark = needs_chromium


@pytest.fixture
def pages(job: Job) -> list[Path]:
    """The reports of a job with errors, two runs and texts, and of one with scores."""
    hostile = "<script>parent.hits = hits = 1</script><img src=x onerror='hits = 1'>"
    prompts: list[Any] = [f"{hostile} prompt {index} " + "long " * index for index in range(30)]
    prompts[7] = prompts[8] = None
    job.input(id=[f"{hostile}{'x' * 90}"] * 30, prompt=prompts).set(report__show_text=True, sampling__n=2)
    for _ in range(2):
        assert job.run() == 3
        next(job.output.iterdir()).unlink()
    assert job.run() == 3
    generated = job.state / "report.html"
    job.settings |= {"task": "score", "score": {"group_by": "subject"}}
    del job.settings["sampling"]
    job.set(output__path=str(job.folder / "scored"))
    rows: dict[str, Any] = {"context": ["c"] * 40, "choices": [["a", "b", "c"]] * 40, "answer": [0, 1, 2, 1] * 10}
    rows["subject"] = [hostile, "history"] * 20
    assert job.input(**rows).run() == 0
    return [generated, job.state / "report.html"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_readable_on_a_phone_and_a_desktop(pages: list[Path], tmp_path: Path, scheme: str) -> None:
    """No horizontal overflow, a contrast of at least 4.5 of every text, nothing on the console, nothing has run."""
    for one in check_pages(pages, tmp_path, scheme):
        assert one["charts"] >= 3 and one["texts"] > 1500


def test_a_screenshot_is_not_blank(pages: list[Path], tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    chromium("--window-size=1000,1400", f"--screenshot={picture}", pages[0].as_uri())
    width, height, lines = pixels(picture.read_bytes())
    assert (width, height) == (1000, 1400)
    # Each band of the page has text or a chart: more than a few lines of pixels that are not all of one colour.
    for top in range(0, 1400, 200):
        assert sum(len(set(line)) > 4 for line in lines[top : top + 200]) > 20, top


def pixels(png: bytes) -> tuple[int, int, list[bytes]]:
    """The width, the height, and the lines of a PNG with 8 bits a channel. A line of one colour has few values."""
    width, height = struct.unpack(">II", png[16:24])
    data, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += 12 + length
    raw = zlib.decompress(data)
    step = len(raw) // height
    return width, height, [raw[line * step + 1 : (line + 1) * step] for line in range(height)]
