"""Conflicts: the rules named are too many together, each is needed, and no fewer would do."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.agents.constraints.conflicts import NamedRule, RuleModel, smallest_conflict

cp_model = pytest.importorskip("ortools.sat.python.cp_model")

# A rule: the sum of the values of some variables is at least, or at most, a number.
Rule = tuple[frozenset[int], bool, int]
NUM_VARIABLES = 3
HIGHEST = 3


def make_model(rules: list[Rule]) -> RuleModel:
    model = cp_model.CpModel()
    values = [model.new_int_var(0, HIGHEST, f"v{i}") for i in range(NUM_VARIABLES)]
    literals = []
    for number, (variables, is_least, limit) in enumerate(rules):
        literal = model.new_bool_var(f"rule {number}")
        total = sum(values[i] for i in variables)
        relation = total >= limit if is_least else total <= limit
        model.add(relation).only_enforce_if(literal)
        literals.append(literal)
    names = tuple(NamedRule(f"rule {i}", f"Rule {i} holds.") for i in range(len(rules)))
    return RuleModel(model=model, rules=names, literals=tuple(literals))


def can_hold(rules: list[Rule]) -> bool:
    """Whether some values keep all rules, by trying all."""
    for code in range((HIGHEST + 1) ** NUM_VARIABLES):
        values = [code // (HIGHEST + 1) ** i % (HIGHEST + 1) for i in range(NUM_VARIABLES)]
        for variables, is_least, limit in rules:
            total = sum(values[i] for i in variables)
            if (total < limit) if is_least else (total > limit):
                break
        else:
            return True
    return False


def numbers(rules: tuple[NamedRule, ...]) -> list[int]:
    return [int(rule.name.removeprefix("rule ")) for rule in rules]


def test_rules_that_can_hold_have_no_conflict() -> None:
    assert smallest_conflict(make_model([(frozenset({0}), True, 1)])) is None
    assert smallest_conflict(make_model([])) is None


def test_the_smallest_of_two_conflicts_is_named() -> None:
    everything = frozenset({0, 1, 2})
    rules: list[Rule] = [
        (frozenset({0}), True, 2),
        (frozenset({1}), True, 2),
        (frozenset({2}), True, 2),
        (everything, False, 5),  # with the three above: a conflict of four
        (frozenset({0, 1}), False, 3),  # with the first two: of three
        (frozenset({2}), False, 3),  # in none
    ]
    found = smallest_conflict(make_model(rules))
    assert found is not None
    assert numbers(found.rules) == [0, 1, 4]
    assert found.is_minimal
    assert found.is_smallest
    assert found.sentence() == (
        "These 3 rules cannot hold together (no fewer rules contradict each other): "
        "(1) Rule 0 holds. (2) Rule 1 holds. (3) Rule 4 holds. "
        "Dropping any one of them resolves this conflict."
    )


def test_a_rule_that_nothing_can_keep_stands_alone() -> None:
    found = smallest_conflict(
        make_model([(frozenset({0}), True, 1), (frozenset({1}), True, HIGHEST + 1)])
    )
    assert found is not None
    assert numbers(found.rules) == [1]
    assert found.is_smallest
    assert found.sentence() == "This rule cannot be kept: Rule 1 holds."


def test_what_always_holds_may_be_impossible_by_itself() -> None:
    rule_model = make_model([(frozenset({0}), True, 1)])
    rule_model.model.add_bool_or([])
    found = smallest_conflict(rule_model)
    assert found is not None
    assert found.rules == ()
    assert "too little room" in found.sentence()


def test_out_of_solves_it_claims_nothing_that_is_not_shown() -> None:
    rules: list[Rule] = [(frozenset({i}), True, 2) for i in range(3)]
    rules.append((frozenset({0, 1, 2}), False, 5))
    found = smallest_conflict(make_model(rules), max_solves=1)
    assert found is not None
    assert not found.is_minimal
    assert not found.is_smallest
    assert smallest_conflict(make_model(rules), max_solves=0) is None


def test_literals_are_one_per_rule() -> None:
    with pytest.raises(ValueError, match="got 0 for 1 rules"):
        RuleModel(model=cp_model.CpModel(), rules=(NamedRule("a", "A."),), literals=())


_RULES = st.lists(
    st.tuples(
        st.frozensets(st.integers(0, NUM_VARIABLES - 1), min_size=1, max_size=NUM_VARIABLES),
        st.booleans(),
        st.integers(0, 2 * HIGHEST),
    ),
    max_size=7,
)


@settings(max_examples=60)
@given(_RULES)
def test_conflicts_are_those_of_brute_force(rules: list[Rule]) -> None:
    found = smallest_conflict(make_model(rules), time_limit_s=30.0)
    if can_hold(rules):
        assert found is None
        return
    assert found is not None
    chosen = [rules[i] for i in numbers(found.rules)]
    assert not can_hold(chosen)
    assert found.is_minimal
    for left_out in range(len(chosen)):
        assert can_hold(chosen[:left_out] + chosen[left_out + 1 :])
    assert found.is_smallest
    fewest = next(
        size
        for size in range(len(rules) + 1)
        if any(not can_hold(list(some)) for some in combinations(rules, size))
    )
    assert len(chosen) == fewest
