"""A whole server that places by worth: requests are served whole, and who may not is told so."""

import asyncio
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from server_stand import Setter, Stand, standing, write_bundle

from trimtab.agents.heuristics import MARGINAL_VALUE, UNIVERSAL_SCORER
from trimtab.agents.policy import Policy
from trimtab.runtime.admin.client import AdminError
from trimtab.runtime.decision_log.explanation import explain_request

WORTH = MARGINAL_VALUE.knobs


def policy_of(path: str) -> Policy:
    return Setter(WORTH if Path(path).name == "worth" else UNIVERSAL_SCORER.knobs)


def nothing_is_lost(stand: Stand) -> None:
    totals = stand.server.dispatcher.totals
    assert set(stand.statuses) == {200}
    assert totals.num_arrived == totals.num_finished == len(stand.statuses)
    assert totals.num_open == totals.num_failed == totals.num_shed == 0
    assert not stand.server.dispatcher._arrays.mirrors["num_rows"].any()
    assert stand.server.dispatcher.num_unmirrored == 0


def by_worth(stand: Stand) -> int:
    """Decisions by worth so far."""
    return int(stand.server.dispatcher._arrays.lookahead["num_decisions"][0])


def test_requests_are_served_whole_and_explained(tmp_path: Path) -> None:
    log = tmp_path / "decisions"

    async def run() -> None:
        async with standing(
            tmp_path, scheduler="marginal-value", decisions_dir=log, decision_every=1
        ) as stand:
            async with stand.loaded():
                await stand.until(lambda: len(stand.statuses) > 60)
            for _ in range(5):
                status, answer = await stand.post(20, is_stream=True)
                stand.statuses.append(status)
                assert answer.endswith(b"0\r\n\r\n")
                assert answer.count(b"data:") >= 20
            nothing_is_lost(stand)
            assert by_worth(stand) >= len(stand.statuses)
            status = stand.server.status()
            assert (status["ruler"], status["policy_version"]) == ("scheduler", "marginal-value")

    asyncio.run(run())
    newest = max((log / "requests").iterdir())
    last = pq.read_table(newest, columns=["request_id"])["request_id"][-1].as_py()
    text = "\n".join(explain_request(log, last).sentences())
    assert "was chosen, worth +" in text


def test_a_gateway_without_the_memory_refuses_worth_and_stays_on_what_it_has(
    tmp_path: Path,
) -> None:
    worth = write_bundle(tmp_path, "worth", base=WORTH)

    async def run() -> None:
        async with standing(tmp_path, policies=policy_of, scheduler="universal-scorer") as stand:
            version = stand.server.dispatcher.knob_version
            async with stand.loaded(2):
                with pytest.raises(AdminError, match=r"422.*places by worth.*--bundle .*worth"):
                    await stand.ask(lambda client: client.swap(worth))
            assert stand.processes == []
            assert stand.server.dispatcher.knob_version == version
            assert stand.server.status()["ruler"] == "scheduler"
            nothing_is_lost(stand)
            assert by_worth(stand) == 0

    asyncio.run(run())


def test_a_first_policy_may_place_by_worth_beside_a_scheduler_that_does_not(
    tmp_path: Path,
) -> None:
    worth = write_bundle(tmp_path, "worth", base=WORTH)
    plain = write_bundle(tmp_path, "plain", base=UNIVERSAL_SCORER.knobs)

    async def run() -> None:
        async with standing(
            tmp_path, policies=policy_of, scheduler="universal-scorer", bundle_path=worth
        ) as stand:
            server = stand.server
            async with stand.loaded(4):
                await stand.until(lambda: server.dispatcher.knobs["value_weight"] == 1.0)
                before = by_worth(stand)
                await stand.until(lambda: by_worth(stand) > before + 20)
                await stand.ask(lambda client: client.swap(plain))
                await stand.until(lambda: server.dispatcher.knobs["value_weight"] == 0.0)
                # Mirrors are kept on, so it may go back.
                await stand.ask(lambda client: client.swap(worth))
                await stand.until(lambda: server.dispatcher.knobs["value_weight"] == 1.0)
            nothing_is_lost(stand)

    asyncio.run(run())
