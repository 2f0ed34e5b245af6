"""The constants of each card, each with its source. This is the only file with figures of hardware.

A source is "measured" (a file in benchmarks/results/nvidia-h100-80gb-hbm3), "published" (by NVIDIA, or by whom it
names) or "as H100" (the H100's figure, because the card is not measured). `LATENCIES`, `TRIPS` and `RATES` are the
H100's for every card, but for the rates of the RTX cards, which have the H100's ratio to `matrix_rate`.

To replace figures by those of a card at hand, run `python -m benchmarks.gpu --plan first` there, and give the file
`limits.json` that its part `limits` writes to `python -m benchmarks.roofline --limits FILE`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

TERA, MICRO = 1e12, 1e-6


LATENCIES: Mapping[str, float] = MappingProxyType(
    {
        "": 1.5 * MICRO,
        "product": 2.7 * MICRO,
        "recurrence": 4.7 * MICRO,
        "shift_lerp_kernel": 2.4 * MICRO,
        "torch.layer_norm": 4.0 * MICRO,
        "select_kernel": 304 * MICRO,
        "a token": 1.06 * MICRO,
        "a token, CUDA": 0.23 * MICRO,
    }
)
"""Kernel → seconds of a launch with next to nothing to move, from its first program's start to its last program's end.

"" is for all other kernels, "select_kernel" the time of a row in the sampler's second kernel, "a token" that of a token
in Triton's recurrence. H100, measured: profile.json (decode steps of 0.1B and 1.5B, kernel by kernel; "product" and
"recurrence" are what a straight line through two sizes leaves at no bytes) and limits.json ("recurrence, one row").
"a token, CUDA", of `wkv7.cu`, is not measured: 400 cycles, see docs/explanation/kernels.md."""

TRIPS: Mapping[tuple[str, int, int], float] = MappingProxyType(
    {
        ("linear_kernel", 16, 256): 0.446 * MICRO,
        ("linear_kernel", 16, 128): 0.223 * MICRO,
        ("linear_kernel", 64, 64): 0.37 * MICRO,
        ("linear_kernel", 64, 128): 0.60 * MICRO,
        ("linear_kernel", 128, 64): 0.60 * MICRO,
        ("project_kernel", 128, 64): 0.60 * MICRO,
        ("down_kernel", 64, 64): 0.30 * MICRO,
        ("down_kernel", 64, 128): 0.34 * MICRO,
        ("up_kernel", 64, 64): 0.50 * MICRO,
        ("w8a8_kernel", 16, 256): 0.40 * MICRO,
        ("w8a8_kernel", 64, 128): 0.33 * MICRO,
        ("w8a8_kernel", 128, 128): 0.60 * MICRO,
        ("mm8_kernel", 16, 256): 0.48 * MICRO,
        ("mm8_kernel", 16, 128): 0.48 * MICRO,
        ("mm8_kernel", 64, 128): 0.63 * MICRO,
        ("mm8_kernel", 128, 64): 0.62 * MICRO,
        ("library", 1, 64): 0.128 * MICRO,
        ("library", 3, 64): 0.55 * MICRO,
    }
)
"""(kernel, tokens of its tile, depth of its tile) → seconds of one trip of a program's loop over K.

("library", 3, 64) is a batch of products, for which the library takes tiles of 128 x 128. H100, measured: int8.json
(the difference of `value`, K = 8192, and `output`, K = 2048, of 1.5B, which have equally many programs) and
profile.json. A tile of 16 tokens in `linear_kernel`, 128 deep, was only seen where bytes take longer: it has half
the time of 256. One of 128 tokens, 64 deep, has not been measured: it has the time of `w8a8`'s, which has as many
bytes."""

RATES: Mapping[str, float] = MappingProxyType(
    {
        "linear_kernel": 475 * TERA,
        "project_kernel": 475 * TERA,
        "score_kernel": 475 * TERA,
        "mm8_kernel": 310 * TERA,
        "w8a8_kernel": 950 * TERA,
    }
)
"""Operations/s of kernels whose large products are slower, or faster, than the library's bfloat16 products. H100,
measured: int8.json at M = 1,024 and 8,192. `linear_kernel`, `project_kernel` and `score_kernel` have not been measured
at such sizes: half of `w8a8`, whose operands have half the bytes."""


@dataclass(frozen=True)
class Card:
    """A card, and how long its parts take.

    Args:
        sources: where each figure is from.
        copy: bytes/s of a large copy, read and written.
        update_share: share of `copy` that a kernel reaches which updates states in place.
        l2: bytes of the cache that a step can count on.
        l2_rate: bytes/s from the cache.
        matrix_rate: operations/s of the library's bfloat16 products of 1,024 tokens and more.
        processors, clock: multiprocessors, and their cycles a second in a long run.
        gap: seconds from the end of a launch to the start of the next inside a recorded step.
        launch: seconds that the host takes for one launch in a step that is not recorded.
    """

    name: str
    sources: Mapping[str, str]
    copy: float
    matrix_rate: float
    processors: int
    clock: float
    l2: float
    l2_rate: float
    memory: float
    update_share: float = 0.894
    gap: float = 0.5 * MICRO
    launch: float = 18.5 * MICRO
    latencies: Mapping[str, float] = field(default_factory=lambda: LATENCIES)
    trips: Mapping[tuple[str, int, int], float] = field(default_factory=lambda: TRIPS)
    rates: Mapping[str, float] = field(default_factory=lambda: RATES)


_MEASURED = "measured: limits.json"
_AS_H100 = "as H100: not measured"

H100 = Card(
    name="H100 SXM 80 GB",
    sources={
        "copy": _MEASURED,
        "matrix_rate": "measured: int8.json, products of 8,192 tokens (716 to 802)",
        "processors": _MEASURED,
        "clock": "1.755 GHz: the matrix peak of the data sheet, 989 T, and 4,096 operations a cycle and multiprocessor",
        "l2": "50 MB (data sheet), of which 0.6: data that both halves of the chip read are held twice",
        "l2_rate": "measured: profile.json, `finish_kernel` (8.4 MB in 2.6 us, less 1.5 us)",
        "update_share": "measured: profile.json, the recurrence of 0.1B and 1.5B at 256 rows: 2.70 TB/s",
        "gap": "measured: profile.json, span less busy less long gaps, over the launches (0.46 and 0.56 us)",
        "launch": "measured: limits.json, launch without a graph",
    },
    copy=3.02 * TERA,
    matrix_rate=750 * TERA,
    processors=132,
    clock=1.755e9,
    l2=0.6 * 50e6,
    l2_rate=7.0 * TERA,
    memory=85e9,
)
H200 = replace(
    H100,
    name="H200 SXM 141 GB",
    sources={
        **dict.fromkeys(H100.sources, _AS_H100 + "; the same chip"),
        "copy": "published: 4.8 TB/s, times the H100's share of its own published 3.35 TB/s (0.90)",
    },
    copy=4.8 * TERA * 3.02 / 3.35,
    memory=141e9,
)


def _rates(matrix_rate: float) -> Mapping[str, float]:
    """`RATES` of a card whose kernels have the H100's ratios to the library's products."""
    return {kernel: rate * matrix_rate / H100.matrix_rate for kernel, rate in RATES.items()}


RTX_5090 = replace(
    H100,
    name="RTX 5090 32 GB",
    sources={
        **dict.fromkeys(H100.sources, _AS_H100),
        "copy": "published by rwkv-sglang: 1,692 GB/s of large reads, of the data sheet's 1,792",
        "update_share": "published by rwkv-sglang: states updated in place at 1,506 to 1,522 GB/s",
        "matrix_rate": "published by rwkv-sglang: 223 to 228 T operations/s, the hardware's rate",
        "processors": "published",
        "clock": "published: boost clock 2.41 GHz",
        "l2": "published: 96 MB, times 0.6",
    },
    copy=1.692 * TERA,
    update_share=1514 / 1692,
    matrix_rate=225 * TERA,
    processors=170,
    clock=2.41e9,
    l2=0.6 * 96e6,
    memory=32e9,
    rates=_rates(225 * TERA),
)
RTX_4090 = replace(
    RTX_5090,
    name="RTX 4090 24 GB",
    sources={
        **dict.fromkeys(H100.sources, _AS_H100),
        "copy": "published: 1.008 TB/s, times the RTX 5090's share of its own published bandwidth (0.94)",
        "update_share": "as RTX 5090",
        "matrix_rate": "published: 165.2 T operations/s of dense bfloat16 with float32 sums",
        "processors": "published",
        "clock": "published: boost clock 2.52 GHz",
        "l2": "published: 72 MB, times 0.6",
    },
    copy=1.008 * TERA * 1692 / 1792,
    matrix_rate=165.2 * TERA,
    processors=128,
    clock=2.52e9,
    l2=0.6 * 72e6,
    memory=24e9,
    rates=_rates(165.2 * TERA),
)
CARDS = {"h100": H100, "h200": H200, "rtx5090": RTX_5090, "rtx4090": RTX_4090}


def with_limits(card: Card, path: Path) -> Card:
    """Replaces a card's figures by those that `benchmarks.gpu` has measured in its part `limits`.

    Args:
        path: of `limits.json`.

    Raises:
        KeyError: the file has no result of that part.
    """
    found = json.loads(path.read_text())
    points, about = found["points"], found["about"]
    seconds_of_token = points["recurrence, one row"]["seconds"]
    return replace(
        card,
        name=str(about["card"]),
        copy=points["copy"]["bytes_per_second"],
        matrix_rate=points["bfloat16 product"]["operations_per_second"] * 750 / 792,
        processors=about["multiprocessors"],
        l2=0.6 * about["l2_bytes"],
        memory=about["memory_bytes"],
        launch=points["launch without a graph"]["seconds"],
        latencies={**card.latencies, "a token": seconds_of_token},
        sources={**card.sources, **dict.fromkeys(("copy", "matrix_rate", "processors", "l2", "launch"), str(path))},
    )
