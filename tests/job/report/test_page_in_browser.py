"""The page report.html in headless Chromium: on a phone and a desktop, light and dark."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Job

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (380, 1200)
SEEN = """
function look(frame) {
  const doc = frame.contentDocument, view = frame.contentWindow, low = [];
  const channels = colour => (colour.match(/[0-9.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = colour => { const [r, g, b] = channels(colour).slice(0, 3).map(c => c / 255)
      .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = element => { for (let e = element; e; e = e.parentElement) {
      const found = channels(view.getComputedStyle(e).backgroundColor);
      if (found.length == 3 || found[3] == 1) return view.getComputedStyle(e).backgroundColor; }
    return 'no background'; };
  for (const element of doc.body.querySelectorAll('*')) {
    const hasText = [...element.childNodes].some(node => node.nodeType == 3 && node.data.trim());
    if (!hasText || element.tagName == 'title' || !element.getClientRects().length) continue;
    const style = view.getComputedStyle(element);
    const [a, b] = [light(element.tagName == 'text' ? style.fill : style.color), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (!(contrast >= 4.5)) low.push([element.tagName, element.className.baseVal || element.className, contrast]);
  }
  const wide = [...doc.body.querySelectorAll('*')].filter(e => !e.closest('.scroll') && !e.closest('svg')
    && e.getBoundingClientRect().right > view.innerWidth + 0.5).map(e => e.tagName + '.' + e.className);
  return {width: view.innerWidth, needed: doc.documentElement.scrollWidth, wide: wide, low_contrast: low,
    background: view.getComputedStyle(doc.body).backgroundColor, scripts: doc.scripts.length, alerts: view.hits || 0,
    charts: doc.querySelectorAll('svg').length, texts: doc.body.innerText.length};
}
addEventListener('load', () => {
  const all = [...document.querySelectorAll('iframe')];
  for (const frame of all) for (const one of frame.contentDocument.querySelectorAll('details')) one.open = true;
  document.getElementById('seen').textContent = JSON.stringify(all.map(look));
});
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")


def chromium(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    quiet = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-extensions",
        "--no-first-run",
    )
    logging = ("--enable-logging=stderr", "--virtual-time-budget=5000")
    return subprocess.run(
        [CHROMIUM, *quiet, *logging, *arguments], capture_output=True, text=True, timeout=120, check=True
    )


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
    frames = [
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{escape(page.read_text())}"></iframe>'
        for page in pages
        for width in WIDTHS
    ]
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f'<!doctype html><script>{SEEN}</script>{"".join(frames)}<pre id="seen"></pre>')
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    done = chromium(*dark, "--dump-dom", wrapper.as_uri())
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stderr
    seen = json.loads(unescape(found[1]))
    assert [one["width"] for one in seen] == [*WIDTHS, *WIDTHS]
    for one in seen:
        assert one["needed"] <= one["width"] and not one["wide"], one
        assert not one["low_contrast"], one["low_contrast"]
        assert (one["scripts"], one["alerts"]) == (0, 0)
        assert one["charts"] >= 3 and one["texts"] > 1500
        assert (int(re.findall(r"\d+", one["background"])[0]) < 60) == (scheme == "dark")


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
