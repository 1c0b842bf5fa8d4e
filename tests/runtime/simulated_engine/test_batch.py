"""Continuous batching on paper: who is admitted, how long an iteration takes, what is cached."""

from dataclasses import dataclass, field

import pytest

from trimtab.runtime.simulated_engine.batch import BLOCK_TOKENS, Batch, EngineSpeed, Sequence


@dataclass
class Tokens:
    """Notes the tokens that come."""

    numbers: list[int] = field(default_factory=list)
    is_whole: bool = False

    def on_token(self, number: int, *, is_last: bool) -> None:
        self.numbers.append(number)
        self.is_whole = is_last


def make_sequence(
    input_tokens: int = 32, max_tokens: int = 3, *, blocks: tuple[int, ...] = (), priority: int = 0
) -> Sequence:
    return Sequence(
        answer=Tokens(), blocks=blocks, input_tokens=input_tokens, max_tokens=max_tokens,
        priority=priority,
    )  # fmt: skip


def run(batch: Batch) -> float:
    """Run until nothing is left; return how long it took."""
    span_s = 0.0
    while (time_s := batch.begin_iteration()) > 0.0:
        span_s += time_s
        batch.end_iteration()
    return span_s


def test_one_request_takes_as_long_as_its_iterations() -> None:
    speed = EngineSpeed(step_s=0.01, prefill_token_s=1e-4, decode_seq_s=1e-3)
    batch, sequence = Batch(speed), make_sequence(100, 4)
    batch.add(sequence)
    # One iteration of the prompt brings the first token, three decodes bring the others.
    assert run(batch) == pytest.approx(0.01 + 100e-4 + 3 * (0.01 + 1e-3))
    answer = sequence.answer
    assert isinstance(answer, Tokens)
    assert answer.numbers == [1, 2, 3, 4]
    assert answer.is_whole
    assert (batch.num_finished, batch.num_output_tokens, batch.num_prompt_tokens) == (1, 4, 100)


def test_a_slow_engine_takes_as_many_times_longer() -> None:
    spans_s = []
    for slowdown in (1.0, 3.0):
        batch = Batch(EngineSpeed(), slowdown=slowdown)
        batch.add(make_sequence(1000, 10))
        spans_s.append(run(batch))
    assert spans_s[1] == pytest.approx(3.0 * spans_s[0])


def test_a_long_prompt_is_computed_in_chunks_beside_decodes() -> None:
    batch = Batch(EngineSpeed(batch_tokens=64, step_s=0.0, decode_seq_s=0.0, prefill_token_s=1.0))
    short, long = make_sequence(10, 5), make_sequence(150, 1)
    batch.add(short)
    assert batch.begin_iteration() == 10.0
    batch.end_iteration()
    batch.add(long)
    # A decode uses one token of the budget.
    assert [batch.begin_iteration() for _ in range(3)] == [63.0, 63.0, 24.0]


@pytest.mark.parametrize(
    ("speed", "num_running"),
    [(EngineSpeed(max_num_seqs=2), 2), (EngineSpeed(kv_tokens=80), 2), (EngineSpeed(), 4)],
)
def test_slots_and_kv_bound_what_runs(speed: EngineSpeed, num_running: int) -> None:
    batch = Batch(speed)
    for _ in range(4):
        batch.add(make_sequence(32))
    batch.begin_iteration()
    assert (len(batch.running), len(batch.waiting)) == (num_running, 4 - num_running)
    run(batch)
    assert batch.num_finished == 4


def test_a_prompt_larger_than_the_cache_runs_alone() -> None:
    batch = Batch(EngineSpeed(kv_tokens=64))
    batch.add(make_sequence(1000))
    run(batch)
    assert batch.num_finished == 1


def test_more_urgent_requests_go_ahead_of_those_that_wait() -> None:
    batch = Batch(EngineSpeed(max_num_seqs=1))
    first, batch_one, batch_two = (make_sequence(priority=p) for p in (1, 1, 1))
    urgent, urgent_too = make_sequence(priority=0), make_sequence(priority=0)
    batch.add(first)
    batch.begin_iteration()
    for sequence in (batch_one, urgent, batch_two, urgent_too):
        batch.add(sequence)
    assert list(batch.waiting) == [urgent, urgent_too, batch_one, batch_two]
    assert batch.running == [first]


def test_a_prompt_that_begins_like_another_is_cached_but_for_its_last_token() -> None:
    batch = Batch(EngineSpeed(step_s=0.0, decode_seq_s=0.0, prefill_token_s=1.0))
    blocks = (1, 2, 3, 4)
    batch.add(make_sequence(4 * BLOCK_TOKENS, 1, blocks=blocks))
    assert run(batch) == 64.0
    batch.add(make_sequence(4 * BLOCK_TOKENS, 1, blocks=blocks))
    # A whole block is computed: the last token needs it.
    assert run(batch) == 16.0
    batch.add(make_sequence(3 * BLOCK_TOKENS, 1, blocks=(1, 2, 9)))
    assert run(batch) == 16.0
    assert batch.num_cached_tokens == 48 + 32


def test_the_cache_forgets_what_was_used_longest_ago() -> None:
    batch = Batch(EngineSpeed(kv_tokens=2 * BLOCK_TOKENS))
    for blocks in ((1,), (2,), (3,), (1,)):
        batch.add(make_sequence(BLOCK_TOKENS + 1, 1, blocks=blocks))
        run(batch)
    assert batch.num_cached_tokens == 0
    batch.add(make_sequence(BLOCK_TOKENS + 1, 1, blocks=(3,)))
    run(batch)
    assert batch.num_cached_tokens == BLOCK_TOKENS


def test_who_went_away_gets_nothing_more_and_frees_its_slot() -> None:
    batch = Batch(EngineSpeed(max_num_seqs=1))
    gone, gone_waiting, stays = make_sequence(), make_sequence(), make_sequence()
    for sequence in (gone, gone_waiting, stays):
        batch.add(sequence)
    batch.begin_iteration()
    batch.remove(gone)
    batch.remove(gone_waiting)
    batch.end_iteration()
    run(batch)
    assert [s.answer.numbers for s in (gone, gone_waiting, stays)] == [[], [], [1, 2, 3]]  # type: ignore[attr-defined]
    assert batch.num_finished == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_num_seqs", 0, "max_num_seqs must be at least 1, got 0"),
        ("kv_tokens", -1, "kv_tokens must be at least 1, got -1"),
        ("step_s", -0.1, "step_s must be at least 0, got -0.1"),
        ("decode_seq_s", float("nan"), "decode_seq_s must be at least 0, got nan"),
    ],
)
def test_impossible_speeds_are_refused(name: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        EngineSpeed(**{name: value})
