"""Answer lengths: quantiles that hold what they promise, learned from little, kept in little."""

import msgspec
import numpy as np
import pytest

from trimtab.agents.output_length import LengthClass, OutputLengths
from trimtab.agents.output_length_kernel import AT_LIMIT, GIVEN_UP, NUM_SLOTS, WHOLE
from trimtab.traces.bundled import load_bundled

ANYONE = LengthClass(tenant=1, input_tokens=500, most_tokens=10_000, is_limited=False)


def teach(lengths: OutputLengths, request: LengthClass, tokens: int, cut: int = WHOLE) -> None:
    keys = lengths.keys(request)
    issued = lengths.predict(keys, request.most_tokens)
    lengths.learn(keys, tokens, cut=cut, issued=issued, most_tokens=request.most_tokens)


def test_a_beginner_guesses_widely() -> None:
    lengths = OutputLengths.new()
    guess = lengths.predict(lengths.keys(ANYONE), 10_000)
    assert 100.0 < guess.p50 < 400.0
    assert 0.0 < guess.p05 < guess.p50 < guess.p90 < guess.p95 < 10_000.0
    assert guess.p50 < guess.mean


@pytest.mark.parametrize("tokens", [0, 1, 3, 17, 100, 5000])
def test_what_never_changes_is_soon_known(tokens: int) -> None:
    lengths = OutputLengths.new()
    for _ in range(100):
        teach(lengths, ANYONE, tokens)
    guess = lengths.predict(lengths.keys(ANYONE), 10_000)
    # a bin is at most a fifth wide, and single lengths below 12 are told apart
    assert guess.p50 == pytest.approx(tokens, rel=0.2, abs=0.5)
    assert guess.p90 >= tokens
    assert guess.mean == pytest.approx(tokens, rel=0.25, abs=8.0)


@pytest.mark.parametrize("most_tokens", [1, 20, 300])
def test_no_answer_is_longer_than_its_limit(most_tokens: int) -> None:
    lengths = OutputLengths.new()
    guess = lengths.predict(lengths.keys(ANYONE), most_tokens)
    assert max(guess) <= most_tokens
    assert guess.p90 == most_tokens


@pytest.mark.parametrize("name", ["tenant", "application", "session", "head", "cluster"])
def test_any_key_that_tells_lengths_apart_is_found(name: str) -> None:
    lengths = OutputLengths.new()
    short = msgspec.structs.replace(ANYONE, **{name: 5})
    long = msgspec.structs.replace(ANYONE, **{name: 6})
    rng = np.random.default_rng(0)
    for _ in range(600):
        teach(lengths, short, int(rng.lognormal(3.0, 0.3)))
        teach(lengths, long, int(rng.lognormal(6.0, 0.3)))
    low, high = (lengths.predict(lengths.keys(who), 10_000) for who in (short, long))
    assert low.p90 < 60.0
    assert high.p50 == pytest.approx(np.exp(6.0), rel=0.25)
    assert low.mean == pytest.approx(np.exp(3.045), rel=0.3)


def test_cut_off_answers_say_that_the_rest_was_longer() -> None:
    """Half of all answers are cut at 100 tokens: the other half says how long they would be."""
    cut, told = OutputLengths.new(), OutputLengths.new()
    rng = np.random.default_rng(1)
    for _ in range(3000):
        tokens = int(rng.lognormal(4.6, 1.0)) + 1
        is_cut = rng.random() < 0.5 and tokens > 100
        teach(cut, ANYONE, min(tokens, 100) if is_cut else tokens, GIVEN_UP if is_cut else WHOLE)
        teach(told, ANYONE, tokens)
    ours = cut.predict(cut.keys(ANYONE), 100_000)
    true = told.predict(told.keys(ANYONE), 100_000)
    assert ours.mean == pytest.approx(true.mean, rel=0.15)


def test_a_limit_is_no_length() -> None:
    lengths = OutputLengths.new()
    rng = np.random.default_rng(2)
    for _ in range(2000):
        tokens = int(rng.lognormal(5.0, 0.5)) + 1
        most = int(rng.choice([100, 10_000]))
        request = LengthClass(tenant=1, input_tokens=9, most_tokens=most)
        cut = AT_LIMIT if tokens >= most else WHOLE
        teach(lengths, request, min(tokens, most), cut)
    free = LengthClass(tenant=1, input_tokens=9, most_tokens=10_000)
    guess = lengths.predict(lengths.keys(free), 10_000)
    assert guess.p50 == pytest.approx(np.exp(5.0), rel=0.2)


def covered_frac(tenants: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Whether each answer was at most its 90 % quantile; each is learned 20 requests later."""
    lengths = OutputLengths.new()
    is_covered = np.zeros(outputs.size, bool)
    waiting = []
    for k, tokens in enumerate(outputs.tolist()):
        keys = lengths.keys(msgspec.structs.replace(ANYONE, tenant=int(tenants[k])))
        guess = lengths.predict(keys, 10_000)
        is_covered[k] = tokens <= guess.p90
        waiting.append((keys, tokens, guess))
        if len(waiting) > 20:
            keys, tokens, guess = waiting.pop(0)
            lengths.learn(keys, tokens, issued=guess)
    return is_covered


@pytest.mark.parametrize("name", ["azure-conv", "azure-code"])
def test_nine_of_ten_recorded_answers_are_covered(name: str) -> None:
    outputs = load_bundled(name).output_tokens[:4000]
    is_covered = covered_frac(np.ones(outputs.size, int), outputs)
    assert is_covered[500:].mean() == pytest.approx(0.9, abs=0.015)


def test_nine_of_ten_are_covered_for_each_tenant_while_lengths_drift() -> None:
    rng = np.random.default_rng(3)
    tenants = rng.choice([1, 2, 3], 6000, p=[0.6, 0.3, 0.1])
    means = np.array([0.0, 3.0, 5.0, 6.0])[tenants] + np.linspace(0.0, 1.5, 6000)
    means[3000:] -= 1.0  # and a jump
    outputs = rng.lognormal(means, 0.7).astype(int) + 1
    is_covered = covered_frac(tenants, outputs)
    assert is_covered[500:].mean() == pytest.approx(0.9, abs=0.02)
    for tenant in (1, 2, 3):
        assert is_covered[500:][tenants[500:] == tenant].mean() == pytest.approx(0.9, abs=0.05)


def test_memory_is_bounded_and_evictions_are_counted() -> None:
    lengths = OutputLengths.new()
    for k in range(2000):
        for _ in range(2):
            teach(lengths, msgspec.structs.replace(ANYONE, session=k + 1, head=k + 1), 50)
    assert lengths.num_learned == 4000
    for k in range(4000):
        teach(lengths, msgspec.structs.replace(ANYONE, tenant=k, session=k + 1, head=k + 1), 50)
    assert lengths.num_evicted > 0
    assert lengths.state["keys"].size == NUM_SLOTS
    guess = lengths.predict(lengths.keys(ANYONE), 10_000)
    assert guess.p50 == pytest.approx(50.0, rel=0.2)
