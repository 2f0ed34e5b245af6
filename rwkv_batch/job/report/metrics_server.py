"""A server that gives the progress of a run to Prometheus: the values of metrics.prom, as they are at each request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import ConfigurationError, MissingExtraError
from .run_status import METRICS

if TYPE_CHECKING:
    from prometheus_client import Metric

HOST = "127.0.0.1"
"""Other machines cannot connect: the server has no password."""


class MetricsServer:
    """Answers Prometheus on a port of this machine, from when it is made until `close`.

    Args:
        port: of 127.0.0.1.
        job: the label of this name: the name of the output folder.
        shard: the label of this name.

    Attributes:
        values: gives the present values of the keys of `METRICS`; None before there are any.

    Raises:
        ConfigurationError: another process uses the port, or this process may not.
        MissingExtraError: the package prometheus_client is missing.
    """

    def __init__(self, port: int, job: str, shard: str) -> None:
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError as error:
            raise MissingExtraError("run.metrics_port", "prometheus_client", "metrics") from error
        self.values: Callable[[], Mapping[str, float]] | None = None
        self._labels = [job, shard]
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, HOST, registry)
        except OSError as error:
            raise ConfigurationError(
                f"got {port}, expected a port of {HOST} that is free ({error.strerror}); give each process that runs a "
                "shard on this machine a port of its own",
                setting="run.metrics_port",
            ) from error

    def close(self) -> None:
        """Stops the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def describe(self) -> list[Any]:
        """Says to the registry that names are known when values are asked for."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment; called by the registry at each request."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        values = self.values() if self.values is not None else {}
        for field, metric in METRICS.items() if values else ():
            family = families[metric.kind](f"rwkv_batch_{metric.name}", metric.help, labels=["job", "shard"])
            family.add_metric(self._labels, values[field])
            yield family
