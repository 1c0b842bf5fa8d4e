"""The state machine of circuit breakers, compiled: every rule on every node, once a step.

A breaker is closed, suspect (closed, with its value beyond the threshold of late), open or half
open. What is absent, not finite, too old or seen before is no observation: it opens and closes
nothing. Time counts between observations, each gap at most `MAX_AGE_S`.

Does not know: what a rule is called, or what an open breaker does.
"""

import numpy as np

from ...env.compiled import compiled, inlined

# Phases of a breaker.
CLOSED, OPEN, HALF_OPEN, SUSPECT = 0, 1, 2, 3

# s; an older observation is none, as in the hub's `MAX_AGE_S` (`runtime/telemetry/hub.py`)
MAX_AGE_S = 5.0
# s; moments that differ by less are the same observation: ages carry rounding errors
SAME_MOMENT_S = 1e-3
# times the rule's cool-down: how long a breaker that keeps opening may stay open
MAX_BACK_OFF = 8.0
# s; a span that falls short by rounding is long enough
_ROUNDING_S = 1e-6

# What an observation says.
_NOTHING, _BREACH, _BETWEEN, _QUIET = 0, 1, 2, 3

RULE_DTYPE = np.dtype(
    [
        ("column", np.int64),
        ("sign", np.float64),  # 1: opens above the threshold, -1: below it
        ("threshold", np.float64),  # times the sign, as is the next
        ("quiet_threshold", np.float64),
        ("for_s", np.float64),
        ("consecutive", np.int64),  # 0: by time
        ("quiet_s", np.float64),
        ("cool_down_s", np.float64),
        ("is_trying", np.int64),  # half open after the cool-down whatever the value
    ]
)

BREAKER_DTYPE = np.dtype(
    [
        ("since_s", np.float64),  # begin of the phase
        ("cool_down_s", np.float64),  # of the last time open; 0 before
        ("closed_at_s", np.float64),
        ("observed_at_s", np.float64),  # last observation of the run
        ("run_s", np.float64),  # run: observations in a row that say the same
        ("run_count", np.int64),
        ("run_says", np.int64),
        ("value", np.float64),  # last observed while not closed
    ]
)

TRANSITION_DTYPE = np.dtype(
    [
        ("row", np.int64),
        ("rule", np.int64),
        ("before", np.int64),
        ("after", np.int64),
        ("value", np.float64),
    ]
)


@inlined
def _meaning_of(rule, value):
    signed = rule.sign * value
    if signed > rule.threshold:
        return _BREACH
    return _QUIET if signed <= rule.quiet_threshold else _BETWEEN


@inlined
def _extend_run(breaker, says, observed_at_s):
    """Take an observation into the run of those that say the same."""
    if breaker.run_says == says:
        breaker.run_s += min(observed_at_s - breaker.observed_at_s, MAX_AGE_S)
        breaker.run_count += 1
    else:
        breaker.run_says = says
        breaker.run_s = 0.0
        breaker.run_count = 1
    breaker.observed_at_s = observed_at_s


@inlined
def _end_run(breaker):
    breaker.run_says = _NOTHING
    breaker.run_s = 0.0
    breaker.run_count = 0


@inlined
def _is_breach(rule, breaker):
    """Whether the run is the rule's condition."""
    if breaker.run_says != _BREACH:
        return False
    if rule.consecutive > 0:
        return breaker.run_count >= rule.consecutive
    return breaker.run_s >= rule.for_s - _ROUNDING_S


@inlined
def _next_cool_down_s(rule, breaker):
    return min(max(2.0 * breaker.cool_down_s, rule.cool_down_s), MAX_BACK_OFF * rule.cool_down_s)


@compiled
def _phase_when_closed(rule, breaker, says, clock_s):
    """Return the next phase of a closed or suspect breaker after an observation."""
    if says != _BREACH:
        _end_run(breaker)
        return CLOSED
    if not _is_breach(rule, breaker):
        return SUSPECT
    # A breaker that opens again within its last cool-down has not really recovered.
    if clock_s - breaker.closed_at_s < breaker.cool_down_s:
        breaker.cool_down_s = _next_cool_down_s(rule, breaker)
    else:
        breaker.cool_down_s = rule.cool_down_s
    return OPEN


@compiled
def _phase_when_open(rule, breaker, phase, clock_s):
    """Return the next phase of an open or half open breaker."""
    if phase == OPEN:
        is_over = clock_s - breaker.since_s >= breaker.cool_down_s - _ROUNDING_S
        if is_over and (rule.is_trying or breaker.run_says == _QUIET):
            return HALF_OPEN
    elif _is_breach(rule, breaker):
        breaker.cool_down_s = _next_cool_down_s(rule, breaker)
        return OPEN
    elif breaker.run_says == _QUIET and breaker.run_s >= rule.quiet_s - _ROUNDING_S:
        breaker.closed_at_s = clock_s
        return CLOSED
    return phase


@compiled
def step_breakers(rules, breakers, phases, seen, clock_s, transitions):
    """Let every breaker of a kind of node see the state of this moment.

    Shapes (N nodes, K rules, F features): `rules` RULE_DTYPE [K]; `breakers` BREAKER_DTYPE and
    `phases` uint8 [N, K], changed; `seen`: values and is_valid [N, F], age_s [N], and
    observed_at_s [N], changed; `transitions` TRANSITION_DTYPE [at least N K], written. Returns the
    number of transitions.
    """
    values, is_valid, age_s, observed_at_s = seen
    num_transitions = 0
    for i in range(phases.shape[0]):
        at_s = clock_s - age_s[i]
        is_new = 0.0 <= age_s[i] <= MAX_AGE_S and at_s > observed_at_s[i] + SAME_MOMENT_S
        if is_new:
            observed_at_s[i] = at_s
        for k in range(rules.size):
            phase, rule = phases[i, k], rules[k]
            says, value = _NOTHING, np.nan
            if is_new and is_valid[i, rule.column]:
                value = values[i, rule.column]
                if np.isfinite(value):
                    says = _meaning_of(rule, value)
            if (phase == CLOSED and says != _BREACH) or (phase == SUSPECT and says == _NOTHING):
                continue
            breaker = breakers[i, k]
            # What was measured before a breaker went half open says nothing about that phase.
            if says != _NOTHING and (phase != HALF_OPEN or at_s > breaker.since_s):
                _extend_run(breaker, says, at_s)
                breaker.value = value
            if phase in (CLOSED, SUSPECT):
                after = _phase_when_closed(rule, breaker, says, clock_s)
            else:
                after = _phase_when_open(rule, breaker, phase, clock_s)
            if after == phase:
                continue
            phases[i, k] = after
            if after != SUSPECT and (phase != SUSPECT or after == OPEN):
                _end_run(breaker)
                breaker.since_s = clock_s
                t = transitions[num_transitions]
                t.row, t.rule, t.before, t.after, t.value = i, k, phase, after, breaker.value
                num_transitions += 1
    return num_transitions
