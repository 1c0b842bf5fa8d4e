"""`trimtab watch`: the whole telemetry path on this machine, which needs no GPU."""

import pytest
from typer.testing import CliRunner

from trimtab.scripts.cli import app


def test_this_machine_is_seen_through_probe_aggregator_and_hub():
    result = CliRunner().invoke(app, ["watch", "--seconds", "1.5", "--backend", "host"])
    assert result.exit_code == 0, result.output
    rows = {line.split()[2]: line.split() for line in result.output.splitlines() if "0 " in line}
    assert 0 < float(rows["host_memory_frac"][3]) < 1
    assert 0 <= float(rows["host_memory_frac"][-1]) < 1.0, "age"
    assert float(rows["rtt_s"][3]) < 0.5
    assert "frames not used: none" in result.output


@pytest.mark.parametrize("backend", ["nothing", "recorded"])
def test_backends_that_are_not_this_machine_are_refused(backend):
    result = CliRunner().invoke(app, ["watch", "--backend", backend])
    assert result.exit_code == 2
    assert backend in result.output
