"""What was learned outlives a restart, or is refused."""

from pathlib import Path

import pytest
from understood import chat, end, facts_of, make_reader

from trimtab.runtime.understanding.learned_state import LearnedState
from trimtab.traces.errors import ConfigError


def test_a_restart_keeps_what_was_learned(tmp_path: Path) -> None:
    reader = make_reader()
    body = chat(("user", "Summarise this text for me, please, and be brief."), max_tokens=1000)
    for _ in range(100):
        end(reader, facts_of(reader, body), 40, input_tokens=30)
    path = tmp_path / "learned" / "state.safetensors"
    reader.state.save(path)
    reader.state.save(path)  # in place of the one before
    assert [file.name for file in path.parent.iterdir()] == ["state.safetensors"]
    restarted = make_reader(state=LearnedState.load(path, 2))
    again, new = facts_of(restarted, body), facts_of(make_reader(), body)
    same = facts_of(reader, body)
    for name in ("input_tokens", "expected_output_tokens", "output_tokens_p90", "cluster"):
        assert getattr(again, name) == getattr(same, name)
    assert again.expected_output_tokens < 60.0 < new.expected_output_tokens


def test_a_state_of_another_fleet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    LearnedState.new(2).save(path)
    with pytest.raises(ConfigError, match=r"a fleet of 3 models\); remove it to begin anew"):
        LearnedState.load(path, 3)


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", None])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "state.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"state\.safetensors' cannot be read"):
        LearnedState.load(path, 2)


def test_its_size_does_not_depend_on_what_comes() -> None:
    reader = make_reader()
    before = sum(records.nbytes for records in reader.state.records())
    for k in range(3000):
        facts = facts_of(reader, chat(("user", f"{k} " * (k % 50 + 1)), user=f"user-{k}"))
        end(reader, facts, k % 300 + 1)
    assert sum(records.nbytes for records in reader.state.records()) == before < 4_000_000
    lengths = reader.state.lengths
    assert (lengths["keys"] != 0).sum() <= lengths["keys"].size
