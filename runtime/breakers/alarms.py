"""Where alarms go: the log, and Prometheus.

Does not know: what raises an alarm, or the webhook (`webhook.py`).
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge

from ...agents.shield.alarm import Alarm, Severity

LEVELS: Final[Mapping[Severity, int]] = {
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.CRITICAL: logging.CRITICAL,
}
"""Level of the log for each severity; an alarm that is over is told at level INFO."""

_log = logging.getLogger(__name__)


class AlarmSink(Protocol):
    """Takes alarms, and never blocks or raises."""

    def send(self, alarms: Sequence[Alarm]) -> None:
        """Take alarms that have begun or are over."""


class LogSink:
    """Writes each alarm as a line of the standard log."""

    def send(self, alarms: Sequence[Alarm]) -> None:
        """Log alarms."""
        for alarm in alarms:
            level = logging.INFO if alarm.is_resolved else LEVELS[alarm.severity]
            state = "resolved" if alarm.is_resolved else str(alarm.severity)
            _log.log(level, "%s [%s] %s", alarm.name, state, alarm.sentence)


class PrometheusSink:
    """Counts alarms, and shows how many breakers are open, for Prometheus.

    `trimtab_alarms_total{name, severity}`: alarms that began. `trimtab_alarms_active{name,
    severity}`: alarms that are not over. `trimtab_breakers_open{name}`: breakers that are open or
    half open.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["name", "severity"]
        self._begun = Counter("trimtab_alarms", "Alarms that began", labels, registry=registry)
        self._active = Gauge(
            "trimtab_alarms_active", "Alarms that are not over", labels, registry=registry
        )
        self._open = Gauge(
            "trimtab_breakers_open", "Breakers open or half open", ["name"], registry=registry
        )
        self._rules: set[str] = set()

    def send(self, alarms: Sequence[Alarm]) -> None:
        """Count alarms."""
        for alarm in alarms:
            active = self._active.labels(alarm.name, alarm.severity)
            if alarm.is_resolved:
                active.dec()
            else:
                active.inc()
                self._begun.labels(alarm.name, alarm.severity).inc()

    def show_open(self, num_open: Mapping[str, int]) -> None:
        """Show how many breakers of each rule are open (`Breakers.num_open`)."""
        for name in self._rules - set(num_open):
            self._open.remove(name)
        self._rules = set(num_open)
        for name, number in num_open.items():
            self._open.labels(name).set(number)
