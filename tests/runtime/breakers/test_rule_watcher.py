"""Breakers follow the file of their rules while they run."""

from pathlib import Path

import numpy as np
import pytest

from trimtab.agents.shield.breaker_file import read_breakers
from trimtab.agents.shield.breakers import Breakers
from trimtab.agents.shield.places import Places, replicas_at
from trimtab.agents.shield.slow_start import SlowStart
from trimtab.env.masks import Mask
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.feature import Node
from trimtab.env.state.registry import FEATURES_BY_NODE, column
from trimtab.runtime.breakers.rule_watcher import REFUSED, RuleWatcher

FULL = "  - {name: full, metric: replica.kv_usage_frac, above: 0.9, then: quarantine}\n"
LATE = "  - {name: late, metric: replica.late_frac, above: 0.5, then: maintenance}\n"


def make_places() -> Places:
    """Two replicas, and nothing else."""
    own, nobody = np.arange(2), np.zeros(0, np.int64)
    sizes = {node: 2 if node is Node.REPLICA else 0 for node in Node}
    pairs = {Node.REPLICA: (own, own)}
    return Places(
        names={node: tuple(f"r{i}" for i in range(size)) for node, size in sizes.items()},
        replicas_at={
            node: replicas_at(size, *pairs.get(node, (nobody, nobody)))
            for node, size in sizes.items()
        },
        model=np.zeros(2, np.int64),
        batch_slots=np.full(2, 64.0),
    )


def full_state(now_s: float) -> ClusterState:
    """The first replica is full and late."""
    sizes = {node: 2 if node is Node.REPLICA else 0 for node in Node}
    values = {n: np.zeros((size, len(FEATURES_BY_NODE[n]))) for n, size in sizes.items()}
    for name in ("kv_usage_frac", "late_frac"):
        values[Node.REPLICA][0, column(Node.REPLICA, name)] = 0.99
    return ClusterState(
        now_s=now_s,
        values=values,
        is_valid={node: np.ones(table.shape, np.bool_) for node, table in values.items()},
        age_s={node: np.zeros(len(table)) for node, table in values.items()},
        gpu_replica=np.zeros(0, np.int64),
        gpu_server=np.zeros(0, np.int64),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(f"breakers:\n{FULL}")
    return file


def watched(path: Path) -> tuple[Breakers, RuleWatcher]:
    breakers = Breakers(read_breakers(path), make_places(), SlowStart(span_s=0))
    return breakers, RuleWatcher(path, breakers)


def names(breakers: Breakers) -> list[str]:
    return [rule.name for rule in breakers.rules]


def test_nothing_happens_while_the_file_stays(path):
    breakers, watcher = watched(path)
    rules = breakers.rules
    assert [watcher.poll(float(second)) for second in range(3)] == [()] * 3
    assert breakers.rules is rules
    assert watcher.num_reloads == 0


def test_new_rules_come_into_force_and_old_breakers_stay_open(path):
    breakers, watcher = watched(path)
    breakers.step(full_state(0.0))
    path.write_text(f"breakers:\n{LATE}{FULL}")
    assert watcher.poll(1.0) == ()
    assert names(breakers) == ["full"]  # may still be being written
    assert watcher.poll(2.0) == ()
    assert names(breakers) == ["late", "full"]
    assert watcher.num_reloads == 1
    [state] = breakers.states()
    assert (state.rule.name, state.place) == ("full", "replica r0")
    step = breakers.step(full_state(2.1))
    assert step.limits.masks[0] == Mask.QUARANTINED | Mask.MAINTENANCE
    assert [alarm.name for alarm in step.alarms] == ["late"]


def test_a_file_that_is_being_written_is_left_alone(path):
    breakers, watcher = watched(path)
    for second, content in enumerate(["breakers:\n", f"breakers:\n{LATE}", f"{FULL}x"]):
        path.write_text(content)
        assert watcher.poll(float(second)) == ()
    path.write_text(f"breakers:\n{LATE}{FULL}")
    assert [watcher.poll(3.0), watcher.poll(4.0)] == [(), ()]
    assert names(breakers) == ["late", "full"]
    assert watcher.num_reloads == 1


def test_a_faulty_file_leaves_the_old_rules_and_is_told_once(path):
    breakers, watcher = watched(path)
    breakers.step(full_state(0.0))
    path.write_text(f"breakers:\n{LATE}{FULL.replace('0.9', '90')}")
    assert watcher.poll(1.0) == ()
    [alarm] = watcher.poll(2.0)
    assert (alarm.name, alarm.at_s, alarm.is_resolved) == (REFUSED, 2.0, False)
    assert alarm.sentence.startswith("old breaker rules stay in force: policy file")
    assert "line 3: breakers[1].above: 90 is outside the range [0, 1]" in alarm.sentence
    assert names(breakers) == ["full"]
    assert breakers.step(full_state(2.1)).limits.masks[0] == Mask.QUARANTINED
    assert [watcher.poll(3.0), watcher.poll(4.0)] == [(), ()]
    path.write_text("breakers: 7\n")  # another fault: the first alarm is over
    watcher.poll(4.1)
    first, second = watcher.poll(4.2)
    assert (first.is_resolved, second.is_resolved) == (True, False)
    assert "must be a list of rules, got 7" in second.sentence
    path.write_text(f"breakers:\n{LATE}")
    watcher.poll(5.0)
    [alarm] = watcher.poll(6.0)
    assert alarm.is_resolved
    assert names(breakers) == ["late"]
    [gone, late] = breakers.step(full_state(6.1)).alarms
    assert (gone.name, gone.is_resolved) == ("full", True)
    assert (late.name, late.is_resolved) == ("late", False)


def test_a_file_that_disappears_is_a_fault(path):
    breakers, watcher = watched(path)
    path.unlink()
    watcher.poll(1.0)
    [alarm] = watcher.poll(2.0)
    assert "cannot be read as YAML" in alarm.sentence
    assert names(breakers) == ["full"]
    path.write_text(f"breakers:\n{FULL}")
    watcher.poll(3.0)
    [alarm] = watcher.poll(4.0)
    assert alarm.is_resolved
