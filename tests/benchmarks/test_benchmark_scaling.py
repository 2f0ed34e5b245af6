"""The benchmark of scaling: the simulation against closed forms and bounds, and rehearsals of its measurements."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import mean
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.host_parts.cases import prompt
from benchmarks.scaling import command
from benchmarks.scaling_parts import coordinator_costs, local_rounds, long_job, store_requests
from benchmarks.scaling_parts.chart import efficiency_chart
from benchmarks.scaling_parts.coordinator_costs import Talk
from benchmarks.scaling_parts.described import FREE, Costs, Fleet, Work, efficiency
from benchmarks.scaling_parts.free_jobs import FreeJob
from benchmarks.scaling_parts.measured import measured_costs
from benchmarks.scaling_parts.simulation import Simulation, base, simulate
from benchmarks.scaling_parts.tables import saturation

STEP, COLD = 0.25, 60.0
"""A power of two, so that sums of steps are exact."""


def fleet(workers: int, slots: int, sigma: float = 0.0, failures: float = 0.0) -> Fleet:
    return Fleet(workers, slots, STEP, sigma, failures, COLD)


@given(st.integers(1, 3000), st.integers(1, 500), st.integers(1, 64), st.integers(1, 20))
def test_one_worker_takes_as_many_waves_as_its_slots_need(rows, rows_per_unit, slots, steps):
    """The borders of units do not count: slots stay full across them."""
    outcome = simulate(Work(rows, rows_per_unit, steps), fleet(1, slots))
    assert outcome.seconds == pytest.approx(COLD + math.ceil(rows / slots) * steps * STEP)
    assert (outcome.rows, outcome.tokens) == (rows, rows * steps)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 100), st.integers(1, 64), st.integers(1, 20))
def test_equal_workers_share_equal_units_evenly(workers, units_each, rows_per_unit, slots, steps):
    work = Work(workers * units_each * rows_per_unit, rows_per_unit, steps)
    outcome = simulate(work, fleet(workers, slots))
    waves, waves_of_one = (math.ceil(rows / slots) for rows in (units_each * rows_per_unit, work.rows))
    expected = COLD + waves * steps * STEP
    assert outcome.seconds == pytest.approx(expected)
    one = base(work, fleet(workers, slots))
    of_one = COLD + waves_of_one * steps * STEP
    assert efficiency(outcome, workers, one) == pytest.approx(of_one / (workers * expected))


def test_a_unit_too_many_costs_a_whole_unit() -> None:
    """Four workers and five units of four waves: one worker serves two units, the others wait."""
    outcome = simulate(Work(5 * 40, 40, 8), fleet(4, 10))
    assert outcome.seconds == COLD + 8 * 8 * STEP


ANY_COSTS = st.builds(
    Costs,
    request_seconds=st.floats(0, 1),
    survey_requests=st.just(1.0),
    finish_requests=st.just(3.0),
    requests_at_once=st.integers(1, 8),
    take_requests=st.floats(0, 2),
    publish_requests=st.floats(0, 5),
    segment_requests=st.floats(0, 3),
    flush_seconds=st.floats(1, 30),
    read_ahead=st.integers(0, 50),
    unit_seconds=st.floats(0, 0.1),
    row_seconds=st.floats(0, 0.01),
    report_row_seconds=st.floats(0, 0.01),
)
ANY_WORK = st.builds(Work, st.integers(1, 2000), st.integers(1, 300), st.integers(1, 20), st.floats(0, 0.9))


@given(ANY_WORK, ANY_COSTS, st.integers(1, 9), st.floats(0, 0.5), st.integers(0, 99))
def test_without_failures_nothing_is_wasted_and_no_bound_is_broken(work, costs, workers, sigma, seed):
    outcome = simulate(work, fleet(workers, 16, sigma), costs, seed)
    assert (outcome.rows, outcome.wasted_tokens, outcome.failures) == (work.rows, 0, 0)
    slots = 16 * workers * outcome.mean_speed / STEP
    assert outcome.seconds >= COLD + (1 - work.spread) * work.rows * work.steps / slots
    assert outcome.seconds >= work.rows * (costs.row_seconds + costs.report_row_seconds)


@given(ANY_WORK, st.floats(0, 3))
def test_one_worker_has_idle_slots_only_while_it_takes_a_unit(work, seconds):
    outcome = simulate(work, fleet(1, 16), Costs(request_seconds=seconds, take_requests=1))
    longest = work.steps * (1 + work.spread) * STEP
    assert outcome.seconds <= COLD + work.units * seconds + (work.rows / 16 + 2) * longest


class CheckedSimulation(Simulation):
    """Notes how many units a worker has more than its share, when it is given one."""

    most_above = -(10**9)

    def _decide(self, worker) -> None:
        before = len(worker.held)
        share = math.ceil(self._unpublished / self._fleet.workers)
        super()._decide(worker)
        if len(worker.held) > before:
            self.most_above = max(self.most_above, len(worker.held) - share)


SMALL_UNITS = st.builds(Work, st.integers(200, 1000), st.integers(1, 8), st.integers(1, 20), st.floats(0, 0.9))


@given(SMALL_UNITS, ANY_COSTS, st.integers(2, 9), st.integers(0, 99))
def test_no_worker_is_given_more_than_its_share(work, costs, workers, seed):
    """A worker reads several small units ahead: near the end of the job it would take those of others."""
    checked = CheckedSimulation(work, fleet(workers, 16, 0.3), costs, seed)
    checked.run()
    assert checked.most_above <= 0


@settings(deadline=None)
@given(ANY_WORK, ANY_COSTS, st.integers(1, 9), st.floats(0, 3000), st.integers(1, 4), st.integers(0, 99))
def test_failures_lose_no_row(work, costs, workers, failures, isolated, seed):
    """Up to a failure every half minute. What one wastes is bounded: rows in flight, and rows not committed."""
    found = simulate(work, Fleet(workers, 16, STEP, 0.2, failures, COLD, isolated), costs, seed)
    assert found.rows == work.rows
    most = 16 * (work.steps * 1.9 + (costs.flush_seconds + work.steps * 1.9 * STEP * 4) / STEP * 4)
    assert found.wasted_tokens <= found.failures * most
    again = simulate(work, Fleet(workers, 16, STEP, 0.2, failures, COLD, isolated), costs, seed)
    assert again == found


def test_what_a_failure_wastes_is_what_it_interrupts() -> None:
    """One worker, whose rows are all in flight, or committed at once: each failure wastes less than one wave."""
    work, costs = Work(4000, 100, 100), Costs(flush_seconds=0.001)
    outcome = simulate(work, fleet(1, 10, failures=500.0), costs)
    assert outcome.failures > 10
    assert 0 < outcome.wasted_tokens < outcome.failures * 10 * 100
    assert outcome.wasted_tokens == pytest.approx(outcome.failures * 10 * 50, rel=0.3)  # at a random moment of a wave


def test_more_failures_lower_the_efficiency() -> None:
    work = Work(40_000, 400, 50)
    one = base(work, fleet(1, 64))
    means = []
    for failures in (0.0, 100.0, 1000.0):
        found = [simulate(work, fleet(8, 64, 0.2, failures), FREE, seed) for seed in range(12)]
        means.append(mean(efficiency(outcome, 8, one) for outcome in found))
    assert means[0] > means[1] - 0.01 > means[2]
    assert means[0] - means[2] > 0.05


def test_the_coordinator_is_the_limit_where_it_saturates() -> None:
    """Twice the workers with which messages take all of its time are no faster, and far fewer are not slowed down."""
    costs = Costs(row_seconds=1e-3)
    most = saturation(fleet(1, 100), costs, [50])[50]
    assert most == 125  # a worker ends 8 rows a second
    few, many = (simulate(Work(100_000, 50, 50), fleet(workers, 100), costs) for workers in (most // 10, most * 2))
    assert (few.seconds - COLD) * (most // 10) / most == pytest.approx(100_000 * 1e-3, rel=0.15)
    assert many.seconds - COLD == pytest.approx(100_000 * 1e-3, rel=0.25)
    assert few.coordinator_share < 0.11


def test_several_workers_serve_suspects_sooner_than_one() -> None:
    """Where a failure comes sooner than one worker serves the rows that were in flight at the last one."""
    work = Work(60_000, 150, 400)
    lone, several = (
        mean(simulate(work, Fleet(60, 64, STEP, 0.0, 40.0, COLD, isolated), FREE, seed).seconds for seed in range(3))
        for isolated in (1, 8)
    )
    assert several < lone


def test_the_chart_shows_the_figures() -> None:
    chart = ElementTree.fromstring(efficiency_chart("a < b", [1, 10, 100], {"x": [1.0, 0.5, 0.0], "y": [1, 1, 1]}))
    assert "a < b" in "".join(chart.itertext())
    lines = [line.attrib["points"] for line in chart.iter() if line.tag.endswith("polyline")]
    (x1, top), (x2, middle), (x3, bottom) = (map(float, point.split(",")) for point in lines[0].split())
    assert x2 - x1 == pytest.approx(x3 - x2)
    assert middle - top == pytest.approx(bottom - middle) and bottom > top
    assert {point.split(",")[1] for point in lines[1].split()} == {f"{top:.1f}"}


def test_it_simulates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    arguments = [
        "simulate",
        "--rows",
        "20000",
        "--tokens",
        "16",
        "--workers",
        "1",
        "4",
        "--cost",
        "request_seconds=0.5",
    ]
    assert command([*arguments, "--plot", str(tmp_path), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["costs"]["request_seconds"] == 0.5
    points = found["jobs"]["20000"]
    assert {point["workers"] for point in points} == {1, 4}
    assert all(0 < point["efficiency"] <= 1.001 for point in points if "±" not in point["variant"])
    ElementTree.parse(tmp_path / "scaling-20000.svg")
    assert "moto" in capsys.readouterr().out  # the source of a cost
    with pytest.raises(SystemExit):
        command(["simulate", "--cost", "nonsense=1"])


def test_wrong_rows_are_noticed(tmp_path: Path) -> None:
    job = FreeJob(tmp_path, 4, 3, 1, 4)
    job.parts_folder.mkdir()
    right = {
        "id": [0, 1, 2, 3],
        "prompt": [prompt(row) for row in range(4)],
        "completion": ["abc"] * 4,
        "completion_tokens": [3] * 4,
        "status": ["ok"] * 4,
    }
    changes = {"id": [0, 1, 1, 3], "prompt": ["x"] * 4, "completion": ["abc", "ab", "", "abc"], "status": ["error"] * 4}
    for change in ({}, *({name: values} for name, values in changes.items())):
        pq.write_table(pa.table({**right, **change}), job.parts_folder / "part-00000-of-00001.parquet")
        assert bool(list(job.wrong_rows())) == bool(change), change
    (job.parts_folder / "part-00000-of-00001.parquet").unlink()
    assert list(job.wrong_rows()) == ["0 rows, expected 4"]


def test_the_rounds_become_a_table() -> None:
    name = "tokens_per_worker_second"
    lines = local_rounds.lines([{1: {name: 50.0}, 2: {name: two}} for two in (45.0, 40.0, 50.0)], {1: 60.0, 2: 57.0})
    assert lines[0] == [name, "50", "45", "0.900 (0.800-1.000)"]
    assert lines[1][1:] == ["60", "57", "0.950"]


def test_quarters_of_the_memory() -> None:
    assert long_job.quarters([0.0, 0.0, *range(10, 16)]) == [10, 11, 12, 13]
    assert long_job.quarters([]) == []


@pytest.mark.soak
def test_a_long_job_rehearses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is killed, started again, and its parts are right; a table is printed."""
    monkeypatch.setattr(long_job, "LOOK_SECONDS", 0.05)
    assert command(["long", "--quick"]) == 0
    text = capsys.readouterr().out
    assert "run 1, worker 0: " in text and "run 2, coordinator: " in text


def test_the_coordinator_hears_all_rows() -> None:
    assert coordinator_costs.cpu_seconds(Talk(60, 25, 4)) > 0


def test_the_report_counts_all_rows() -> None:
    """In windows of processor time that are long enough for its clock."""
    assert coordinator_costs.report_row_seconds(20_000, 3) > 0


def test_requests_are_counted() -> None:
    found = store_requests.measure()
    assert found == {name: value for name, value in vars(measured_costs({})).items() if name in found}
