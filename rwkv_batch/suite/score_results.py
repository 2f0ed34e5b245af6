"""Metrics of a finished score job of a suite, as its report has them."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa

from ..commands.finished import open_finished
from ..errors import ConfigurationError
from ..job.report.score_conventions import empty_summary
from ..job.report.scores import RESULTS
from .grade import Graded, row_ids
from .intervals import Z
from .result import Metric, Samples

SHARES = {
    "accuracy": "correct",
    "accuracy_norm": "correct_norm",
    "accuracy_bytes": "correct_bytes",
    "greedy_match": "is_greedy",
}
"""Metric that is a share of rows → the column that says which rows."""
NATS = "nats"
"""The negative log-likelihood of a row, by which models are compared where no metric is a mean over rows."""
FIRST = ("accuracy", "greedy_match", "bits_per_byte")
"""The metrics of which the first that is there is shown first."""


def score_results(output_folder: str) -> Graded:
    """The metrics of a finished score job, and their values for each row.

    Args:
        output_folder: of the job; or its state folder.

    Raises:
        ConfigurationError: there is no such job, or it is not finished.
    """
    finished = open_finished(output_folder)
    summary = empty_summary(finished.job["settings"], None)
    if summary is None:
        raise ConfigurationError(f"{output_folder}: got a job with task {finished.task}, expected score")
    names = {name: found for name in RESULTS if (found := finished.column(name)) is not None}
    ids: list[str] = []
    values: dict[str, list[np.ndarray]] = {}
    passed = [name for name in summary.passed if name in finished.schema.names]
    columns = [*dict.fromkeys([*names.values(), *passed, *filter(None, [finished.id_column()])])]
    for batch in finished.batches(columns):
        results = batch.select([*names.values()]).rename_columns([*names])
        summary.add(results, batch)
        ids += [str(len(ids) + place) if one is None else one for place, one in enumerate(row_ids(finished, batch))]
        for name, array in _values_of(results).items():
            values.setdefault(name, []).append(array)
    scores = summary.metrics()
    wanted = {*scores, NATS}
    joined = {name: np.concatenate(arrays) for name, arrays in values.items() if name in wanted}
    rows = int(max((np.sum(~np.isnan(one)) for one in joined.values()), default=0))
    order = sorted(scores, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    metrics = tuple(_metric(name, scores[name], _known(joined, name, rows)) for name in order)
    return metrics, Samples(ids, joined)


def _values_of(results: pa.RecordBatch) -> dict[str, np.ndarray]:
    """The values of each row that are known row by row; NaN where they are not, as for error rows."""
    found = {}
    for name, column in (*SHARES.items(), (NATS, "logprob")):
        if column in results.schema.names and not pa.types.is_list(results[column].type):
            array = results[column]
            array = array.cast(pa.int8()) if pa.types.is_boolean(array.type) else array
            found[name] = np.array(array.cast(pa.float64()).to_numpy(zero_copy_only=False))
    return {**found, **({NATS: -found[NATS]} if NATS in found else {})}


def _known(joined: dict[str, np.ndarray], name: str, rows: int) -> int:
    """The rows of which a metric is."""
    return int(np.sum(~np.isnan(joined[name]))) if name in joined else rows


def _metric(name: str, found: dict[str, float], rows: int) -> Metric:
    half = Z * found["stderr"]
    value = found["value"]
    high = min(value + half, 1.0) if name in SHARES else value + half
    return Metric(name, value, max(value - half, 0.0), high if math.isfinite(high) else None, rows, name in SHARES)
