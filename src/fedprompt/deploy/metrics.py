"""Metrics for Prometheus: what a metric is, and the endpoint on loopback that serves them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedprompt.deploy.init import certificate_days
from fedprompt.errors import UserError

if TYPE_CHECKING:
    from prometheus_client import Metric as Family

DAY = 86_400.0  # seconds


@dataclass(frozen=True)
class Metric:
    """A metric in Prometheus' terms; the name of a counter ends in `_total`."""

    name: str
    kind: Literal["counter", "gauge"]
    text: str
    labels: tuple[str, ...] = ()


Values = Mapping[Metric, Mapping[tuple[str, ...], float]]  # metric -> values of its labels -> number
DISK = Metric("fedprompt_disk_free_bytes", "gauge", "Free space on the disk of the folder")
CERTIFICATE = Metric(
    "fedprompt_certificate_remaining_seconds", "gauge", "Time until a certificate expires, in whole days", ("file",)
)
BOTH = (DISK, CERTIFICATE)  # the metrics that server and sites have


def folder_values(folder: Path) -> Values:
    """The metrics that server and sites have."""
    days: dict[tuple[str, ...], float] = {(file.name,): left * DAY for file, left in certificate_days(folder).items()}
    return {DISK: {(): float(shutil.disk_usage(folder).free)}, CERTIFICATE: days}


@contextmanager
def exported(port: int, read: Callable[[], Values]) -> Iterator[None]:
    """Serve what `read` returns, one call at a time, on a port of loopback while the block runs.

    Raises UserError if prometheus_client is not installed or the port is in use.
    """
    if find_spec("prometheus_client") is None:
        raise UserError("metrics_port needs prometheus_client; install it with: pip install 'fedprompt[metrics]'")
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()  # of its own: the default one has further metrics, of the process
    registry.register(_Collector(read))
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise UserError(f"The metrics_port {port} cannot be used ({error.strerror}); set another one.") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Collector:
    """Turns metrics into families of prometheus_client at every scrape."""

    def __init__(self, read: Callable[[], Values]) -> None:
        self._read = read
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Family]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        with self._lock:
            values = self._read()
        for metric, samples in values.items():
            family = families[metric.kind](metric.name, metric.text, labels=metric.labels)
            for labels, number in sorted(samples.items()):
                family.add_metric(labels, number)
            yield family
