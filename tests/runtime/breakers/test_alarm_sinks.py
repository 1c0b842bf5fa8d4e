"""Alarms reach the log and Prometheus."""

import json
import logging

from prometheus_client import CollectorRegistry

from trimtab.agents.shield.alarm import Alarm, Severity
from trimtab.runtime.breakers.alarms import LogSink, PrometheusSink


def make_alarm(**changes) -> Alarm:
    settings = {
        "name": "memory-pressure",
        "severity": Severity.WARNING,
        "place": "gpu h100-0/gpu-3",
        "sentence": "gpu h100-0/gpu-3: full",
        "at_s": 12.5,
        "value": 0.95,
        "threshold": 0.92,
    }
    return Alarm(**(settings | changes))


def test_an_alarm_is_plain_json():
    assert json.loads(json.dumps(make_alarm(value=None).as_dict())) == {
        "name": "memory-pressure",
        "severity": "warning",
        "place": "gpu h100-0/gpu-3",
        "sentence": "gpu h100-0/gpu-3: full",
        "at_s": 12.5,
        "is_resolved": False,
        "value": None,
        "threshold": 0.92,
    }


def test_the_log_has_a_line_for_each_alarm_at_its_level(caplog):
    sink = LogSink()
    with caplog.at_level(logging.INFO):
        sink.send([make_alarm(severity=severity) for severity in list(Severity)[1:]])
        sink.send([make_alarm(is_resolved=True)])
    assert [record.levelno for record in caplog.records] == [
        logging.INFO, logging.WARNING, logging.CRITICAL, logging.INFO,
    ]  # fmt: skip
    assert caplog.messages[1] == "memory-pressure [warning] gpu h100-0/gpu-3: full"
    assert caplog.messages[3] == "memory-pressure [resolved] gpu h100-0/gpu-3: full"


def test_prometheus_counts_alarms_and_shows_open_breakers():
    registry = CollectorRegistry()
    sink = PrometheusSink(registry)
    labels = {"name": "memory-pressure", "severity": "warning"}
    sink.send([make_alarm(), make_alarm(place="gpu h100-0/gpu-4")])
    sink.send([make_alarm(is_resolved=True)])
    assert registry.get_sample_value("trimtab_alarms_total", labels) == 2
    assert registry.get_sample_value("trimtab_alarms_active", labels) == 1
    sink.show_open({"memory-pressure": 3, "heat": 0})
    assert registry.get_sample_value("trimtab_breakers_open", {"name": "memory-pressure"}) == 3
    assert registry.get_sample_value("trimtab_breakers_open", {"name": "heat"}) == 0
    sink.show_open({"heat": 1})
    assert registry.get_sample_value("trimtab_breakers_open", {"name": "memory-pressure"}) is None
    assert registry.get_sample_value("trimtab_breakers_open", {"name": "heat"}) == 1
