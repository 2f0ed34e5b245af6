"""Report pages in headless Chromium: on a phone and a desktop, light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

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
  const squeezed = [...doc.body.querySelectorAll('table:not(.stacked) td:first-child')].filter(e =>
    e.getClientRects().length && e.innerText.length > 3 && e.getBoundingClientRect().width < 40).map(e => e.innerText);
  return {width: view.innerWidth, squeezed: squeezed, needed: doc.documentElement.scrollWidth, wide: wide,
    low_contrast: low,
    background: view.getComputedStyle(doc.body).backgroundColor, scripts: doc.scripts.length, alerts: view.hits || 0,
    charts: doc.querySelectorAll('svg').length, texts: doc.body.innerText.length};
}
addEventListener('load', () => {
  const all = [...document.querySelectorAll('iframe')];
  for (const frame of all) for (const one of frame.contentDocument.querySelectorAll('details')) one.open = true;
  document.getElementById('seen').textContent = JSON.stringify(all.map(look));
});
"""

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH"
)


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


def check_pages(pages: Sequence[Path], folder: Path, scheme: str) -> list[dict[str, Any]]:
    """Asserts that pages are readable: no horizontal overflow, contrast, nothing on the console, nothing has run.

    Args:
        folder: where a file may be written.
        scheme: "light" or "dark".

    Returns:
        What was seen of each page at each of `WIDTHS`.
    """
    frames = [
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{escape(page.read_text())}"></iframe>'
        for page in pages
        for width in WIDTHS
    ]
    wrapper = folder / "wrapper.html"
    wrapper.write_text(f'<!doctype html><script>{SEEN}</script>{"".join(frames)}<pre id="seen"></pre>')
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    done = chromium(*dark, "--dump-dom", wrapper.as_uri())
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stderr
    seen: list[dict[str, Any]] = json.loads(unescape(found[1]))
    assert [one["width"] for one in seen] == [*WIDTHS] * len(pages)
    for one in seen:
        assert one["needed"] <= one["width"] and not one["wide"], one
        assert not one["low_contrast"], one["low_contrast"]
        assert not one["squeezed"], one["squeezed"]  # the name of a row is not broken into single letters
        assert (one["scripts"], one["alerts"]) == (0, 0)
        assert (int(re.findall(r"\d+", one["background"])[0]) < 60) == (scheme == "dark")
    return seen
