"""Numbers and times as people read them."""

from __future__ import annotations

import pytest

from rwkv_batch.job.report.wording import counted, date, duration, moment, percent, rounded, shortened, size


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.002, "< 0.01 s"),
        (0.42, "0.42 s"),
        (34.4, "34 s"),
        (60, "1 min"),
        (252, "4 min 12 s"),
        (59.7, "1 min"),
        (4980, "1 h 23 min"),
        (183_600, "2 d 3 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("share", "words"),
    [(0, "0 %"), (0.0004, "< 0.1 %"), (0.0421, "4.2 %"), (0.614, "61 %"), (0.9995, "> 99.9 %"), (1, "100 %")],
)
def test_shares(share: float, words: str) -> None:
    assert percent(share) == words


def test_numbers() -> None:
    assert [rounded(number) for number in (0, 0.023404, 4.5678, 45.678, 12345.6)] == [
        "0",
        "0.0234",
        "4.57",
        "45.7",
        "12,346",
    ]
    assert [counted(number, "row") for number in (0, 1, 1234)] == ["0 rows", "1 row", "1,234 rows"]
    assert [size(number) for number in (12, 1536, 24 * 2**30)] == ["12 B", "1.5 KiB", "24.0 GiB"]
    assert shortened("abcdef", 6) == "abcdef" and shortened("abcdefg", 5) == "abcde… (2 more characters)"


def test_dates_have_the_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert moment(1795647428.97) == "2026-11-26T04:27:08+05:30"
        assert date(moment(1795647428.97)) == "2026-11-26 04:27:08 +05:30"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert date("2026-11-25T22:57:08+00:00") == "2026-11-25 22:57:08 UTC"
