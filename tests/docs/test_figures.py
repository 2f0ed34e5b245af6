"""The measured figures that pages show are those of the result files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest

from docs.pages import ROOT

NUMBERS = (ROOT / "docs" / "explanation" / "numbers.md").read_text(encoding="utf-8")
PEERS = {
    "`rwkv` 0.8.32, fp32": "rwkv cpu fp32",
    "`rwkvserve` 0.1.0, fp32": "rwkvserve fp32",
    "llama.cpp F16": "llama.cpp F16",
    "llama.cpp BF16": "llama.cpp BF16",
    "llama.cpp Q8_0": "llama.cpp Q8_0",
    "llama.cpp Q4_0": "llama.cpp Q4_0",
    "llama.cpp Q4_0, embedding and head too": "llama.cpp Q4_0 pure",
    "float32": "rwkv_batch float32",
    "bfloat16": "rwkv_batch bfloat16",
    "bfloat16, `w8a8`": "rwkv_batch bfloat16+w8a8",
}
BATCH_SIZES = {
    "avx512": ("Beside other engines", (1, 2, 4, 8, 32, 128)),
    "avx2": ("With AVX2 only", (1, 8, 32, 64, 128)),
}
"""End of a result file's name → its heading, and the batch sizes of its columns."""


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def rows(text: str, title: str) -> Iterator[list[str]]:
    """The cells of the first table below a heading, without its head."""
    table = re.search(r"(?:^\|.*\n)+", text.split(f"## {title}\n", 1)[1], re.MULTILINE)
    assert table is not None
    for line in table[0].splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("machine", BATCH_SIZES)
def test_peers(machine: str) -> None:
    title, sizes = BATCH_SIZES[machine]
    measured = result(f"peers-rwkv7-0.1b-{machine}")["tokens_per_second"]
    points = [*(f"decode B={size}" for size in sizes), "prefill B=1", "prefill B=8"]
    shown = {name: cells for name, *cells in rows(NUMBERS, title) if "÷" not in name and "the same" not in name}
    assert {"float32", "bfloat16", "bfloat16, `w8a8`"} < set(shown)
    for name, cells in shown.items():
        found = measured[PEERS[name]]
        assert cells == [f"{median(found[point]):.0f}" if point in found else "" for point in points], name


def test_ratios_to_peers() -> None:
    """Medians of the ratios of each round."""
    measured = result("peers-rwkv7-0.1b-avx512")
    rates = measured["tokens_per_second"]
    shown = {name: cells for name, *cells in rows(NUMBERS, "Beside other engines") if "÷" in name}
    pairs = {
        "bfloat16 ÷ llama.cpp BF16": ("rwkv_batch bfloat16", "llama.cpp BF16"),
        "`w8a8` ÷ llama.cpp Q8_0": ("rwkv_batch bfloat16+w8a8", "llama.cpp Q8_0"),
    }
    for name, (own, other) in pairs.items():
        found = [[a / b for a, b in zip(rates[own][p], rates[other][p], strict=True)] for p in rates[own]]
        assert sorted(shown[name]) == sorted(f"{median(each):.2f}" for each in found)
    best = measured["median_ratio_to_best_form"]["llama.cpp"]["rwkv_batch bfloat16+w8a8"]
    found_best = sorted(f"{ratio:.2f}" for ratio in best.values())
    assert sorted(shown["`w8a8` ÷ llama.cpp's best of the round"]) == found_best


def test_the_readme_shows_the_same() -> None:
    numbers = {name: cells for name, *cells in rows(NUMBERS, "Beside other engines")}
    names = {"`rwkv` 0.8.32, float32": "`rwkv` 0.8.32, fp32"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, *cells in rows(readme, "What it costs and gives"):
        one, _, _, *decode, prefill, prefill_8 = numbers[names.get(name, name.removeprefix("rwkv_batch "))]
        assert cells == [one, *decode, prefill_8 or f"{prefill} (one prompt)"], name


def test_shares_of_what_bounds_a_decode_step() -> None:
    measured = {(name, point): shares for name, point, *shares in result("engine-rwkv7-0.1b-avx512")["shares_of_peak"]}
    for name, *cells in rows(NUMBERS, "What bounds a decode step on a CPU"):
        form, _, of = name.partition(":")
        variant = "rwkv_batch " + form.replace("`", "").replace(", ", "+")
        points = [f"decode B={size}" for size in (1, 2, 4, 8, 32, 64, 128)]
        found = [measured[variant, point][0 if "int8" in of else 1] for point in points]
        assert cells == [share.replace("%", " %") for share in found], name


def test_decoding_beside_other_programs() -> None:
    page = (ROOT / "docs" / "explanation" / "kernels.md").read_text(encoding="utf-8")
    shown = list(rows(page, "Threads of the native CPU kernels"))
    for cells, measured in zip(shown, result("contention-avx512")["cells"], strict=True):
        rates = measured["rates"]
        names = ("all threads", "one thread", "other commit")
        shares = [both / max(both, one) for both, one in zip(rates[names[0]], rates[names[1]], strict=True)]
        variant = {"float32": "float32", "bfloat16+w8a8": "bfloat16, `w8a8`"}[measured["variant"]]
        figures = [f"{median(rates[name]):.0f}" for name in names]
        expected = [measured["load"], variant, str(measured["batch_size"]), *figures, f"{median(shares):.2f}"]
        assert cells == expected


def test_number_formats() -> None:
    measured = [list(row.values()) for row in result("quality-avx2")["table"]]
    for (name, *cells), (variant, *figures) in zip(rows(NUMBERS, "What number formats cost"), measured, strict=True):
        assert name.replace("`", "").replace(", ", "+") == variant
        speed, memory, bits, same, equal = figures
        assert cells == [
            speed,
            memory,
            bits,
            same.replace(".00%", "%").replace("%", " %"),
            equal.removesuffix(" of 256"),
        ]


def test_scoring() -> None:
    measured = result("scoring-rwkv7-0.1b-cpu-rwkv-package")
    for name, *cells in rows(NUMBERS, "Scoring"):
        case = "multiple choice" if name.startswith("5-shot") else "last word"
        speed = median(measured["rows_per_second"][case]["rwkv_batch"])
        ratios = measured["median_ratio"][case]
        found = [speed, ratios["rwkv, every choice"], ratios["rwkv, context once"]]
        assert [float(cell) for cell in cells] == [float(f"{figure:.2g}") for figure in found], name


def test_versions() -> None:
    measured = result("versions-avx2")
    speeds, shares = rows(NUMBERS, "Every version")
    for name, speed, share in zip(("4", "5.2", "6.0", "7.0"), speeds[1:], shares[1:], strict=True):
        found = measured[f"{name} float32"]
        assert abs(32 / median(found["step_milliseconds"]) * 1000 - int(speed)) <= 5
        assert f"{found['share']:.0%}" == share.replace(" ", "")


def test_constrained_rows() -> None:
    runs = result("host-constrained-avx2")["runs"]
    (table,) = re.findall(r"^\| case \| engine's thread .*\n\|.*\n((?:\|.*\n)+)", NUMBERS, re.MULTILINE)
    shown = [[float(cell) for cell in line.strip("|").split("|")[1:]] for line in table.splitlines()]
    contenders, keys = ("this commit", "the other"), ("main_thread_ms", "all_threads_ms")
    measured = [
        [median(each[key] for each in runs[case]["engine"][name]) for key in keys for name in contenders]
        for case in ("256x64", "256x64-constrained", "256x64-few", "1024x64-few")
    ]
    for own, expected in zip(shown, measured, strict=True):
        assert own == [float(f"{value:.3g}") if value > 10 else round(value, 2) for value in expected]


def test_clients_of_object_stores() -> None:
    measured = result("object-stores")
    page = (ROOT / "docs" / "explanation" / "commit-protocol.md").read_text(encoding="utf-8")
    cases = ["start", "put small", "get small", "put large", "get large"]
    for index, client in enumerate(("obstore", "s3fs")):
        found = measured[client]
        cells = [row[1 + index] for row in rows(page, "In an object store")]
        times = [f"{found[case]['seconds']:.1f} ({found[case]['cpu_seconds']:.1f})" for case in cases[1:]]
        start, peak = f"{found['start']['seconds']:.2f}", f"{found['peak_bytes'] / 1e6:.0f}"
        assert cells == [start, *times, found["created_by_one"].split()[0], peak], client
