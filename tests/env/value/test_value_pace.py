"""Tokens by the pace of a replica: known answers where every iteration takes the same."""

import numpy as np
import pytest

from trimtab.env.cluster import ReplicaSpec
from trimtab.env.hardware import GPUS
from trimtab.env.knobs import Knobs
from trimtab.env.lookahead.mirror import MIRROR_DTYPE, ROW_DTYPE
from trimtab.env.lookahead.situation import iteration_times_s
from trimtab.env.model_profile import MODELS
from trimtab.env.replica_latency import replica_latency
from trimtab.env.value.features import SUMS_DTYPE
from trimtab.env.value.pace import see_pace

REPLICA = ReplicaSpec(name="r", server="s", model="llama-3-8b", gpu_indices=(0,))
LATENCY = replica_latency(GPUS["A100-80G"], MODELS["llama-3-8b"], REPLICA)
# Context costs nothing, so that all iterations of a kind take the same.
for name in ("decode_context_s", "prefill_attention_s", "prefill_position_s"):
    LATENCY[name] = 0.0
CHUNK = 512


def record(array):
    return array.view(np.recarray)[0]


def step_s(num_running, chunk=0):
    batch = (chunk, 0.5 * chunk * (chunk + 1), num_running, 0)
    return iteration_times_s(record(LATENCY), np.full(4096, np.nan), batch, 0)[0]


class Replica:
    """A mirror with some that run since 10 s, their last token then, and some that wait."""

    def __init__(self, num_running=2, num_waiting=0):
        self.mirror, self.rows = np.zeros(1, MIRROR_DTYPE), np.zeros(8, ROW_DTYPE)
        for name, value in {
            "max_num_seqs": 256, "max_batch_tokens": CHUNK + num_running, "min_chunk_tokens": 16,
            "kv_tokens": 100_000, "num_rows": num_running + num_waiting, "stepped_at_s": 10.0,
        }.items():  # fmt: skip
            self.mirror[name] = value
        self.rows["num_sequences"], self.rows["first_token_s"] = 1, np.nan
        self.rows["input_tokens"] = self.rows["uncached_tokens"] = 5000
        self.rows["first_token_s"][:num_running] = 10.0
        self.rows["generated_tokens"][:num_running] = 1
        self.num_running = num_running

    def see(self, now_s, heard_at_s=-np.inf, slow_factor=1.0):
        """The tokens of the running ones at a moment."""
        see_pace(
            record(self.mirror), self.rows.view(np.recarray), record(np.zeros(1, SUMS_DTYPE)),
            (record(LATENCY), np.full(4096, np.nan), slow_factor), heard_at_s, now_s,
            record(Knobs().record()),
        )  # fmt: skip
        assert not self.rows["generated_tokens"][self.num_running :].any()
        (tokens,) = set(self.rows["generated_tokens"][: self.num_running].tolist())
        return tokens


@pytest.mark.parametrize("slow_factor", [1.0, 3.0])
def test_every_iteration_gives_one_token_however_often_one_looks(slow_factor):
    step = slow_factor * step_s(2)
    once, often = Replica(), Replica()
    assert once.see(10.0 + 40.3 * step, slow_factor=slow_factor) == 41
    for part in np.arange(0.1, 40.31, 0.1):
        tokens = often.see(10.0 + part * step, slow_factor=slow_factor)
    assert tokens == 41
    assert often.mirror["stepped_at_s"][0] == pytest.approx(10.0 + 40.0 * step)


def test_a_prompt_that_waits_slows_the_pace():
    replica = Replica(num_waiting=1)
    slow = step_s(2, CHUNK)
    assert slow > 1.5 * step_s(2)
    assert replica.see(10.0 + 6.2 * slow) == 7


def test_what_came_last_tells_when_an_iteration_ended():
    step, replica = step_s(2), Replica()
    assert replica.see(10.0 + 5.9 * step, heard_at_s=10.0 + 5.2 * step) == 6
    assert replica.mirror["stepped_at_s"][0] == pytest.approx(10.0 + 5.2 * step)
    # Two that come a moment after each other are of one iteration.
    assert replica.see(10.0 + 5.95 * step, heard_at_s=10.0 + 5.4 * step) == 6
    # What is heard of no more goes on by its pace.
    assert replica.see(10.0 + 15.3 * step, heard_at_s=10.0 + 5.4 * step) == 16


def test_where_nobody_runs_nothing_moves():
    replica = Replica(num_running=0, num_waiting=2)
    see = replica.mirror.copy()
    see_pace(
        record(replica.mirror), replica.rows.view(np.recarray), record(np.zeros(1, SUMS_DTYPE)),
        (record(LATENCY), np.full(4096, np.nan), 1.0), 0.0, 20.0, record(Knobs().record()),
    )  # fmt: skip
    assert replica.mirror.tobytes() == see.tobytes()
