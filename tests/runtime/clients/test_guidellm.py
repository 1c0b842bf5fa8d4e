"""The load generator `guidellm` against the whole gateway, by the command in docs/clients.md.

It brings hundreds of packages, so it is looked for on the path, or where TRIMTAB_GUIDELLM says.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from clients_stand import KEY, Stand, in_a_thread

COMMAND = os.environ.get("TRIMTAB_GUIDELLM") or shutil.which("guidellm")
NUM_REQUESTS, OUTPUT_TOKENS = 60, 8


def run_guidellm(stand: Stand, directory: Path) -> dict[str, dict[str, int]]:
    """Send chat requests of known length as streams and return the report's metrics."""
    prompts = directory / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": f"{n} and a tail " * 40}) + "\n" for n in range(NUM_REQUESTS))
    )
    backend = {
        "kind": "openai_http", "target": stand.url.removesuffix("/v1"), "model": "m",
        "api_key": KEY, "max_tokens": OUTPUT_TOKENS,
    }  # fmt: skip
    report = directory / "report.json"
    subprocess.run(
        [
            str(COMMAND), "run", "--disable-console", "--backend", json.dumps(backend),
            "--profile", "kind=poisson,rate=40",
            "--constraint", f"kind=max_requests,count={NUM_REQUESTS}",
            "--data", f"kind=json_file,path={prompts}", "--output", f"kind=json,path={report}",
        ],
        check=True, timeout=240, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    metrics: dict[str, dict[str, int]] = json.loads(report.read_text())["benchmarks"][0]["metrics"]
    return metrics


@pytest.mark.slow
@pytest.mark.skipif(COMMAND is None, reason="guidellm is not installed (TRIMTAB_GUIDELLM)")
def test_guidellm_gets_every_token_of_every_request(tmp_path: Path) -> None:
    with in_a_thread() as stand:
        metrics = run_guidellm(stand, tmp_path)
        totals = metrics["request_totals"]
        assert (totals["successful"], totals["errored"]) == (NUM_REQUESTS, 0)
        tokens = metrics["output_token_count"]["successful"]
        assert tokens["total_sum"] == NUM_REQUESTS * OUTPUT_TOKENS  # type: ignore[index]
        assert stand.dispatcher.totals.num_finished == NUM_REQUESTS
        assert stand.dispatcher.num_open == 0
