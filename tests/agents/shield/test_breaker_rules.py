"""Rules of breakers: what is refused, with which words, and what a rule says of itself."""

from pathlib import Path

import pytest
from breaker_fleet import make_rule

from trimtab.agents.constraints.policy_file import read_policy
from trimtab.agents.shield.alarm import Severity
from trimtab.agents.shield.breaker_file import (
    DEFAULT_POLICY,
    BreakerEntry,
    default_breakers,
    read_breakers,
)
from trimtab.agents.shield.breaker_rules import METRICS, BreakerRule, Effect, Recovery
from trimtab.env.state.feature import Node
from trimtab.traces.errors import ConfigError

GOOD = {"name": "memory-pressure", "metric": "gpu.hbm_used_frac", "above": 0.92, "then": "alarm"}


def entry(**changes) -> BreakerEntry:
    given = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    return BreakerEntry.model_validate(given)


def write(tmp_path: Path, *items: str, head: str = "breakers:\n") -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(head + "".join(f"  - {item}\n" for item in items))
    return path


def test_the_example_of_the_documentation_becomes_a_rule():
    rule = entry(
        for_s=3,
        then="degrade",
        amount=0.5,
        recover={"below": 0.88, "for_s": 5, "cool_down_s": 10, "probes": 3},
        alarm="warning",
    ).rule()
    assert rule == BreakerRule(
        name="memory-pressure",
        metric="gpu.hbm_used_frac",
        threshold=0.92,
        for_s=3.0,
        effect=Effect.DEGRADE,
        amount=0.5,
        recovery=Recovery(threshold=0.88, for_s=5.0, cool_down_s=10.0, probes=3),
        severity=Severity.WARNING,
    )
    assert rule.node is Node.GPU


def test_without_a_recover_threshold_the_value_must_leave_the_breach():
    assert entry().rule().recovery.threshold == 0.92


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"metric": "gpu.hbm_usd_frac"},
            r"^metric: unknown metric 'gpu.hbm_usd_frac'; did you mean 'gpu.hbm_used_frac'\?",
        ),
        ({"metric": "zzzz"}, r"^metric: unknown metric 'zzzz'; the form is node.feature"),
        (
            {"above": 92.0},
            r"^above: 92 is outside the range \[0, 1\] \(share\) of gpu.hbm_used_frac; "
            r"did you mean 0.92\?",
        ),
        ({"above": -1.0}, r"^above: -1 is outside the range \[0, 1\]"),
        ({"above": 1.0}, r"^above: gpu.hbm_used_frac is never above 1, the rule would never fire"),
        (
            {"above": None, "below": 0.0},
            r"^below: gpu.hbm_used_frac is never below 0, the rule would never fire",
        ),
        ({"below": 0.5}, r"^below: give above or below, got both \(0.92 and 0.5\)"),
        ({"above": None}, r"^above: key is missing; give above or below"),
        ({"for_s": 3, "consecutive": 5}, r"^consecutive: give for_s or consecutive, got both \(3 "),
        (
            {"recover": {"below": 0.95}},
            r"^recover.below: must be at most the threshold 0.92, got 0.95; the breaker would "
            "close in breach",
        ),
        (
            {"above": None, "below": 0.2, "recover": {"above": 0.1}},
            r"^recover.above: must be at least the threshold 0.2, got 0.1",
        ),
        (
            {"recover": {"above": 0.5}},
            r"^recover.above: a rule with 'above' recovers 'below' a value, got above 0.5",
        ),
        ({"recover": {"below": -3}}, r"^recover.below: -3 is outside the range \[0, 1\]"),
        (
            {"metric": "tenant.late_frac", "then": "quarantine"},
            r"^then: a rule on the tenant may only alarm, it stands on no replica; got 'quarantin",
        ),
        (
            {"metric": "fleet.late_frac", "then": "degrade", "amount": 1},
            r"^then: a rule on the fleet may only alarm",
        ),
        ({"then": "degrade"}, r"^amount: 'degrade' needs a penalty above 0 .*, got 0"),
        ({"amount": 0.5}, r"^amount: only 'degrade' has an amount .*, got 'alarm'; remove it"),
        ({"alarm": "none"}, r"^alarm: 'alarm' without an alarm does not tell anybody"),
        (
            {"then": "maintenance", "alarm": "none"},
            r"^alarm: 'maintenance' without an alarm does not tell anybody",
        ),
    ],
)
def test_a_rule_that_cannot_be_is_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        entry(**changes).rule()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"max_open_frac": 0.0}, "max_open_frac: must be in"),
        ({"for_s": -1.0}, "for_s: must be at least 0"),
        ({"consecutive": 0}, "consecutive at least 1, got 1.0 and 0"),
        ({"recovery": Recovery(threshold=0.8, cool_down_s=0.0)}, "cool_down_s: must be above 0"),
        ({"recovery": Recovery(threshold=0.8, probes=-1)}, "probes and for_s must be at least 0"),
        ({"threshold": float("nan")}, "above: nan is outside the range"),
    ],
)
def test_rules_made_by_hand_are_checked_too(changes, text):
    with pytest.raises(ValueError, match=text):
        make_rule(**changes)


def test_all_faults_of_a_file_come_with_their_lines(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(
        "name: acme\n"
        "breakers:\n"
        "  - name: one\n"
        "    metric: gpu.hbm_used_frac\n"
        "    above: 92\n"
        "    then: quarantine\n"
        "    recover:\n"
        "      below: 0.95\n"
        "  - {name: two, metric: gpu.hbm_used, above: 0.9, then: alarm}\n"
        "  - name: three\n"
        "    metric: gpu.hbm_used_frac\n"
        "    abve: 0.9\n"
        "    then: explode\n"
        "  - name: four\n"
        "    metric: gpu.hbm_used_frac\n"
        "    above: .nan\n"
        "    then: alarm\n"
        "    recover: {cool_down_s: 0}\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_breakers(path)
    message = str(caught.value)
    assert message.startswith(f"policy file '{path}' has 6 fault(s):")
    for text in (
        "line 5: breakers[0].above: 92 is outside the range [0, 1]",
        "line 9: breakers[1].metric: unknown metric 'gpu.hbm_used'; did you mean",
        "line 12: breakers[2].abve: unknown key with value 0.9; did you mean 'above'?",
        "line 13: breakers[2].then: ",
        "line 16: breakers[3].above: ",
        "line 18: breakers[3].recover.cool_down_s: ",
    ):
        assert text in message
    lines = [int(line.split("line ")[1].split(":")[0]) for line in message.splitlines()[1:]]
    assert lines == sorted(lines)


def test_several_faults_of_one_rule_are_told_at_once(tmp_path):
    item = "{name: a, metric: tenant.late_frac, above: 0.2, then: degrade, recover: {below: 0.3}}"
    with pytest.raises(ConfigError, match=r"has 3 fault\(s\)") as caught:
        read_breakers(write(tmp_path, item))
    for text in ("recover.below: must be at most", "then: a rule on", "amount: 'degrade' needs"):
        assert f"line 2: breakers[0].{text}" in str(caught.value)


def test_in_a_whole_policy_each_fault_has_the_line_of_its_key_too(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(
        "name: acme\nbreakers:\n  - name: a\n    metric: tenant.late_frac\n    above: 0.2\n"
        "    then: degrade\n    recover: {below: 0.3}\n"
    )
    with pytest.raises(ConfigError, match=r"has 3 fault\(s\)") as caught:
        read_policy(path)
    for text in ("line 7: breakers[0].recover.below: must", "line 6: breakers[0].then: a rule on"):
        assert text in str(caught.value)


def test_names_are_unique(tmp_path):
    item = "{name: twice, metric: gpu.hbm_used_frac, above: 0.9, then: alarm}"
    with pytest.raises(ConfigError, match=r"line 3: breakers\[1\].name: 'twice' is used 2 times"):
        read_breakers(write(tmp_path, item, item))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("breakers: 3\n", "line 1: breakers: must be a list of rules, got 3"),
        ("just words\n", "line 1: breakers: must be a list of rules, got 'just words'"),
        ("a: [\n", "cannot be read as YAML"),
        ("breakers: [7]\n", "line 1: breakers.0.: must be a mapping of name, metric, above"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(tmp_path, content, text):
    path = tmp_path / "rules.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=text):
        read_breakers(path)


@pytest.mark.parametrize("content", ["", "name: acme\n", "breakers:\n", "breakers: []\n"])
def test_a_policy_without_breakers_has_none(tmp_path, content):
    path = tmp_path / "rules.yaml"
    path.write_text(content)
    assert read_breakers(path) == ()


def test_the_bundled_rules_are_read_and_include_the_two_examples():
    rules = {rule.name: rule for rule in default_breakers()}
    memory, pages = rules["memory-pressure"], rules["kv-allocation-failures"]
    assert (memory.metric, memory.threshold, memory.for_s) == ("gpu.hbm_used_frac", 0.92, 3)
    assert memory.effect is Effect.DEGRADE
    assert (pages.metric, pages.consecutive) == ("replica.preemptions_per_s", 5)
    assert pages.effect is Effect.MAINTENANCE
    assert len(rules) > 10
    assert DEFAULT_POLICY.is_file()


def test_every_metric_of_the_registry_may_be_watched():
    for metric, feature in METRICS.items():
        middle = (feature.scale.low + feature.scale.high) / 2
        rule = make_rule(
            metric=metric,
            threshold=middle,
            effect=Effect.ALARM,
            recovery=Recovery(threshold=middle),
        )
        assert rule.sentence().startswith(f"When {metric}")


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (
            make_rule(),
            "When replica.kv_usage_frac (pages allocated to running requests) is above 90 % for "
            "1 s, that replica gets no requests, and an alarm (warning) is raised; after 5 s it is "
            "tried with 3 requests at a time, and it ends once that has been at most 80 % for 2 s; "
            "at most 50% of a model's replicas are barred at a time, beyond that there is only an "
            "alarm.",
        ),
        (
            make_rule(
                metric="gpu.nvlink_links_up_frac",
                threshold=1.0,
                is_above=False,
                for_s=0.0,
                consecutive=2,
                effect=Effect.DEGRADE,
                amount=0.5,
                outstanding_frac=0.25,
                severity=Severity.NONE,
                recovery=Recovery(threshold=1.0, for_s=0.0, probes=0),
            ),
            "When gpu.nvlink_links_up_frac is below 100 % in 2 observations in a row, every "
            "replica on that GPU costs 0.5 more in the score and may have 25% of its batch slots "
            "in use; after 10 s at the earliest it ends, once that has been at least 100 %.",
        ),
        (
            make_rule(
                metric="zone.available_frac", is_above=False, threshold=0.5, for_s=0.0,
                effect=Effect.ALARM, severity=Severity.CRITICAL,
                recovery=Recovery(threshold=0.5),
            ),
            "When zone.available_frac (up) is below 50 %, an alarm (critical) is raised; after "
            "10 s at the earliest it ends, once that has been at least 50 % for 10 s.",
        ),
    ],
)  # fmt: skip
def test_a_rule_explains_itself_in_a_sentence(rule, text):
    assert rule.sentence() == text
