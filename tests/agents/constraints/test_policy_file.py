"""Policy files: what they may say, and every fault with its line."""

from pathlib import Path

import pytest

from trimtab.agents.constraints.policy_file import LISTS, Policy, PolicyFileEntry, read_policy
from trimtab.agents.constraints.service_rules import Budget, OverBudget, Priority
from trimtab.agents.shield.emergency_rules import DEFAULT_RULES
from trimtab.env.config_file import DATA_DIR
from trimtab.env.emergency import Emergency
from trimtab.traces.errors import ConfigError

EXAMPLE = DATA_DIR / "examples" / "policy.yaml"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def faults_of(path: Path, *others: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_policy(path, *others)
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]]


def test_the_example_says_something_of_every_section():
    policy = read_policy(EXAMPLE)
    assert {section for section, _, _ in policy.sentences()} == {*LISTS, "emergency", "fallback"}
    bank = policy.tenants[0]
    assert (bank.tier, bank.ttft_s, bank.models) == ("gold", 0.4, ("llama-3-70b",))
    assert policy.tiers[2].priority is Priority.BATCH
    assert policy.origin("tenants", "bank").endswith("policy.yaml line 26")
    shed = next(rule for rule in policy.emergencies if rule.kind is Emergency.SHED)
    assert (shed.amount, shed.max_s) == (2, 20)
    assert [stale.after_s for stale in policy.staleness] == [1, 5]
    assert policy.fallback.trip_wire.limit == 0.05
    assert [limit.knob for limit in policy.limits] == ["shed_interactive", "replica_bias"]


def test_an_empty_file_is_the_default_policy(tmp_path):
    policy = read_policy(write(tmp_path / "p.yaml", "{}"))
    assert policy == Policy(origins=policy.origins)
    assert policy.emergencies == DEFAULT_RULES


def test_rules_read_well():
    sentences = {name: text for _, name, text in read_policy(EXAMPLE).sentences()}
    assert sentences["vip"] == (
        "Pool 'vip' holds the replicas in zone 'zone-a' and on GPU 'H100-80G'; only tenants "
        "assigned to it may use them."
    )
    assert sentences["newsletter"] == (
        "Tenant 'newsletter' has tier 'bulk', gets at most 600000 tokens a minute and 20 requests "
        "a second and 12 USD an hour; requests beyond wait as batch requests."
    )
    assert sentences["shed_interactive"] == (
        "Knob 'shed_interactive' is at least 1, at most 10, changed by at most 0.2 a second, "
        "moved by a policy."
    )
    assert sentences["replica_bias"] == "The bias of each replica is at most 1."
    assert sentences["analytic-scorer"].endswith(
        "whose regret over 5 windows is above 5%, until 10 good windows have passed."
    )
    assert sentences["german"] == "Adapter 'german' is served in pool 'small' only."


def test_every_fault_is_told_at_once_with_its_line(tmp_path):
    path = write(
        tmp_path / "rules.yaml",
        """\
name: rules
tiers:
  - {name: gold, priority: urgent}
  - name: silver
    ttft_ms: 300
    ttft_s: -1
tenants:
  - {name: bank, tier: golden}
  - name: shop
    tier: silver
    budget: {usd_per_hour: 3}
breakers:
  - {name: hot, metric: gpu.hbm_used, above: 0.9, then: degrade}
  - {name: full, metric: gpu.hbm_used_frac, above: 92, for_s: 3, then: degrade, amount: 1}
emergency:
  sheds: {amount: 2}
  shed: {amount: 900}
staleness:
  - {group: engine_page, after_s: 1, grace_s: 3}
limits:
  - {knob: batch_wait, low: 1}
pool: []
""",
    )
    text = "\n".join(faults_of(path))
    for line, words in (
        (3, "priority"),
        (5, "ttft_ms: unknown key with value 300; did you mean 'ttft_s'?"),
        (6, "ttft_s"),
        (9, "usd_per_hour needs usd_per_million_tokens"),
        (13, "hbm_used_frac"),
        (14, "92"),
        (16, "unknown action 'sheds'"),
        (17, "amount of shed must be in [0.1, 50]"),
        (19, "grace_s"),
        (21, "batch_wait"),
        (22, "pool: unknown key"),
    ):
        found = [fault for fault in text.splitlines() if f"line {line}: " in fault]
        assert any(words in fault for fault in found), (line, words, text)


def test_names_must_exist_and_be_unique_over_all_files(tmp_path):
    one = write(
        tmp_path / "one.yaml",
        "tiers:\n  - {name: gold, pools: [vop]}\npools:\n  - {name: vip, gpus: [H100-80G]}\n",
    )
    two = write(
        tmp_path / "two.yaml",
        "default_tier: golf\ntiers:\n  - name: gold\ntenants:\n  - {name: bank, tier: gild}\n",
    )
    faults = faults_of(one, two)
    expected = [
        f"{two} line 3: tiers[0]: name 'gold' is taken in {one} line 2; choose another",
        f"{two} line 1: default_tier: unknown tier 'golf'; did you mean 'gold'?",
        f"{one} line 2: tier 'gold': unknown pool 'vop'; did you mean 'vip'?",
        f"{two} line 5: tenant 'bank': unknown tier 'gild'; did you mean 'gold'?",
    ]
    assert len(faults) == len(expected)
    assert all(fault.startswith(start) for fault, start in zip(faults, expected, strict=True))


def test_what_a_policy_has_once_is_set_once(tmp_path):
    one = write(tmp_path / "one.yaml", "fallback: {late_s: 1}\nemergency: {shed: {amount: 3}}\n")
    two = write(tmp_path / "two.yaml", "fallback: {late_s: 2}\nemergency: {shed: {amount: 4}}\n")
    first, second = faults_of(one, two)
    assert first == f"{two} line 1: fallback: is set in {one} line 1 already; set it once"
    assert second.startswith(f"{two} line 2: emergency.shed: is set in {one}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b\n", "must be a mapping"),
        ("tiers: {name: gold}\n", "tiers"),
        ("a: [\n", "cannot be read as YAML"),
        ("fallback: {heuristic: analitic-scorer}\n", "did you mean 'analytic-scorer'"),
        ("adapters:\n  - {name: x}\n", "must be served by some replicas or pools"),
        ("placement:\n  - {model: m, min_replicas: 3, max_replicas: 2}\n", r"got 2"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        read_policy(write(tmp_path / "p.yaml", text))
    assert words in str(caught.value)


def test_no_file_and_no_such_file():
    with pytest.raises(ConfigError, match="at least one file"):
        read_policy()
    with pytest.raises(ConfigError, match="unknown policy 'defalt'; did you mean 'default'"):
        read_policy("defalt")


def test_every_list_is_read():
    lists = {key for key in PolicyFileEntry.model_fields if key in LISTS}
    assert lists == set(LISTS)


def test_dollars_become_tokens():
    budget = Budget(usd_per_hour=3.6, usd_per_million_tokens=0.5, tokens_per_min=1e6)
    assert budget.tokens_per_s == pytest.approx(2000.0)
    assert budget.when_over is OverBudget.REFUSE
    with pytest.raises(ValueError, match="must limit tokens_per_min"):
        Budget()
