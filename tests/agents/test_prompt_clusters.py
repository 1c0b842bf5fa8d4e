"""Prompts of one kind get one number, and keep it."""

from collections import Counter

import numpy as np
import pytest

from trimtab.agents.prompt_clusters import NUM_CLUSTERS, cluster_in, new_clusters

SUBJECTS = ("harbour", "engine", "garden", "planet", "bridge", "violin", "castle", "market")
KINDS = {
    "code": "Write a Python function that returns the {0} sorted by {1}. def solve(values): ",
    "translate": "Translate the following sentence into French: The {0} is near the old {1}.",
    "summary": "Summarise this article in three sentences. The {0} was opened beside the {1}.",
    "sql": "Given the table {0}(id, name), write a SQL query: SELECT the newest {1} rows.",
}


def prompt(kind: str, rng: np.random.Generator) -> bytes:
    words = rng.choice(SUBJECTS, 2, replace=False)
    return ('[{"role":"user","content":"' + KINDS[kind].format(*words) + '"}]').encode()


def cluster(state: np.ndarray, data: bytes) -> int:
    return int(cluster_in(state, np.frombuffer(data, np.uint8)))


def test_kinds_of_prompts_are_told_apart() -> None:
    state, rng = new_clusters(), np.random.default_rng(0)
    kinds = list(KINDS)
    for _ in range(400):
        cluster(state, prompt(str(rng.choice(kinds)), rng))
    found = {kind: Counter(cluster(state, prompt(kind, rng)) for _ in range(50)) for kind in kinds}
    # of two prompts with one number, nearly always both are of one kind
    by_cluster: dict[int, Counter[str]] = {}
    for kind, clusters in found.items():
        for number, times in clusters.items():
            by_cluster.setdefault(number, Counter())[kind] += times
    right = sum(kinds.most_common(1)[0][1] for kinds in by_cluster.values())
    assert right / 200 >= 0.95
    assert len(by_cluster) <= 40


def test_a_prompt_keeps_its_number_while_others_come() -> None:
    state, rng = new_clusters(), np.random.default_rng(1)
    for _ in range(300):
        cluster(state, prompt(str(rng.choice(list(KINDS))), rng))
    first = cluster(state, prompt("sql", np.random.default_rng(5)))
    for _ in range(500):
        cluster(state, prompt(str(rng.choice(list(KINDS))), rng))
    assert cluster(state, prompt("sql", np.random.default_rng(5))) == first


@pytest.mark.parametrize("data", [b"", b"x", b"[]", b"\xff" * 300, "日本語の文章".encode() * 40])
def test_whatever_comes_has_a_number(data: bytes) -> None:
    state = new_clusters()
    assert cluster(state, data) == 0
    assert np.isfinite(state["sums"]).all()


def test_there_are_never_more_than_so_many() -> None:
    state, rng = new_clusters(), np.random.default_rng(2)
    numbers = {cluster(state, rng.bytes(400)) for _ in range(2000)}
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz     ", np.uint8)
    numbers |= {cluster(state, rng.choice(letters, 400).tobytes()) for _ in range(2000)}
    assert max(numbers) < NUM_CLUSTERS
    assert np.isfinite(state["sums"]).all()
