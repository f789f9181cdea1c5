"""The numbers of one process for Prometheus, on a port of this machine.

`RUN/prometheus/NAME.json` says where, in the form that Prometheus discovers targets from:

    scrape_configs:
      - job_name: dynatok
        file_sd_configs: [{files: ["runs/*/prometheus/*.json"]}]
"""

from __future__ import annotations

import json
import math
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

_NAME: Final = re.compile(r"[^a-zA-Z0-9_]")


class Exporter:
    """Serves the last numbers that `set` was given, as gauges `dynatok_NAME`."""

    def __init__(self, run_dir: Path, run_id: str, process: str, port: int = 0) -> None:
        """`port` 0 takes a free one. Raises ValueError where the port is taken."""
        from prometheus_client import CollectorRegistry, start_http_server

        self._labels = {"run": run_id, "process": process}
        self._numbers: dict[str, float] = {}
        self._said = False
        self._lock = threading.Lock()
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, "127.0.0.1", registry)
        except OSError as error:
            raise ValueError(
                f"prometheus_port {port} cannot be used ({error.strerror}); write another, 0 for "
                "a free one, or -1 for none"
            ) from error
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._file = run_dir / "prometheus" / f"{process}.json"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        target = [{"targets": [self.address], "labels": self._labels}]
        self._file.write_text(json.dumps(target) + "\n")

    def set(self, numbers: Mapping[str, Any]) -> None:
        """These numbers are the latest of their names; what is no number is left out."""
        if not self._thread.is_alive() and not self._said:
            self._said = True
            print(
                f"the numbers for Prometheus at {self.address} are served no more: its thread "
                "has died",
                file=sys.stderr,
                flush=True,
            )
        with self._lock:
            for name, value in numbers.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self._numbers[name] = float(value)

    def collect(self) -> Iterator[Any]:
        """For the registry."""
        from prometheus_client.core import GaugeMetricFamily

        with self._lock:
            numbers = dict(self._numbers)
        for name, value in sorted(numbers.items()):
            gauge = GaugeMetricFamily(
                f"dynatok_{_NAME.sub('_', name)}", name, labels=list(self._labels)
            )
            gauge.add_metric(list(self._labels.values()), value)
            yield gauge

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2)
        self._file.unlink(missing_ok=True)


def open_exporter(run_dir: Path, run_id: str, process: str, port: int) -> Exporter | None:
    """An exporter; None for port -1, or where prometheus_client is not installed."""
    if port < 0:
        return None
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        return None
    return Exporter(run_dir, run_id, process, port)
