"""Tells why a request went where it went, from what the decision log holds of it.

Does not know: who asks, or how the log was written.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...env.dispatch import TERM_NAMES
from ...env.masks import mask_text
from ...env.shed_reason import ShedReason, shed_text
from ...traces.errors import TrimtabError
from .decision_log import CANDIDATES, REQUESTS

_TERM_TEXTS = {
    "predicted_ttft": "its predicted first token",
    "predicted_ttft_s": "its predicted first token",
    "tpot_hinge": "slow output tokens",
    "kv_hinge": "its full KV cache",
    "batch": "its large batch",
    "prefix_hit": "what it has of the prompt",
    "prefix_miss": "what it lacks of the prompt",
    "externality": "the work that the prompt makes there",
    "replica_bias": "the policy's bias",
    "outstanding_requests": "its open requests",
    "outstanding_tokens": "its open tokens",
    "pending_tokens": "its backlog of prompts",
    "waiting_share": "its queue",
    "waiting": "its queue",
    "running": "its running requests",
    "kv_usage": "its KV usage",
    "round_robin": "its place in the turn",
    "session_hash": "the session's hash",
}
_WORTH_TEXTS = {
    "own_goodput": "its own chance there",
    "others_goodput": "what it would cost those that are there",
    "price": "the price of its prefill there",
    "scorer": "the scorer's cost",
}


class UnknownRequestError(TrimtabError):
    """The decision log holds nothing of a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What is logged of one request."""

    request: dict[str, Any] | None
    """Its row; None while it has not ended."""
    candidates: tuple[dict[str, Any], ...]
    """One for each replica, of its last decision that was kept in full; else empty."""

    def as_dict(self) -> dict[str, Any]:
        """Return all that is known, for machines."""
        return {"request": self.request, "candidates": list(self.candidates)}

    def sentences(self) -> Iterator[str]:
        """Yield the chain in words."""
        if self.request is not None:
            yield _arrival(self.request)
        if self.candidates:
            yield from self._decision()
        elif self.request is not None and self.request["replica"]:
            yield (
                f"It went to {self.request['replica']} with a first token predicted in "
                f"{_ms(self.request['predicted_ttft_s'])}; this decision was not kept in full."
            )
        if self.request is not None:
            yield _outcome(self.request)

    def _decision(self) -> Iterator[str]:
        first = self.candidates[0]
        version = first["policy_version"] or "unnamed"
        doubt = f", as the policy was in doubt ({first['doubt']})" if first["doubt"] else ""
        yield f"{first['ruler'] or version} ruled{doubt} (knob version {first['knob_version']})."
        chosen = next((c for c in self.candidates if c["is_chosen"]), None)
        if chosen is None:
            yield f"It was refused: {_refusal(first)}."
        else:
            yield (
                f"{chosen['replica']} was chosen, {_verdict(chosen)}: it had "
                f"{chosen['view_outstanding_requests']:.0f} open requests and a backlog of "
                f"{chosen['view_pending_tokens']:.0f} prompt tokens, held "
                f"{chosen['hit_tokens']} of the prompt's {chosen['query_input_tokens']} tokens; "
                f"its page was {_ms(chosen['page_age_s'])} old. Confidence "
                f"{chosen['confidence']:.0%}."
            )
            if self.request is not None and self.request["replica"] == chosen["replica"]:
                yield _prediction(self.request)
        others = [c for c in self.candidates if c is not chosen]
        for candidate in sorted(others, key=lambda c: c["cost"]):
            yield _why_not(candidate, chosen)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _arrival(row: dict[str, Any]) -> str:
    kind = "interactive" if row["priority"] == 0 else "batch"
    return (
        f"Request {row['request_id']} of tenant '{row['tenant']}' ({kind}) asked {row['model']} "
        f"with {row['input_tokens']} prompt tokens; some {row['expected_output_tokens']:.0f} "
        f"output tokens were expected, at most {row['output_tokens_p90']:.0f} in nine of ten "
        f"cases. Limits: first token {_ms(row['ttft_slo_s'])}, then {_ms(row['tpot_slo_s'])} a "
        "token."
    )


def _prediction(row: dict[str, Any]) -> str:
    predicted, limit = _ms(row["predicted_ttft_s"]), _ms(row["ttft_slo_s"])
    return f"Its first token was predicted in {predicted} (limit {limit})."


def _outcome(row: dict[str, Any]) -> str:
    span = _ms(row["ended_at_s"] - row["arrived_at_s"])
    text = f"It was {row['ending']} (HTTP {row['status']}) after {span}"
    if row["ttft_s"] == row["ttft_s"]:
        ttft, limit = row["ttft_s"], row["ttft_slo_s"]
        fate = "within its limit" if ttft <= limit else f"beyond its limit of {_ms(limit)}"
        text += f", first token after {_ms(ttft)}, {fate}"
    if row["output_tokens"]:
        text += f", {row['output_tokens']} output tokens"
    if row["num_attempts"] > 1:
        text += f", at attempt {row['num_attempts']}"
    return f"{text}."


def _is_by_worth(candidate: dict[str, Any]) -> bool:
    # Older logs know of no worth.
    return bool(candidate.get("is_by_worth", False))


def _worth(candidate: dict[str, Any]) -> float:
    """Return the goodput that a candidate was expected to gain."""
    return -float(candidate["worth_own_goodput"] + candidate["worth_others_goodput"])


def _verdict(candidate: dict[str, Any]) -> str:
    if not _is_by_worth(candidate):
        return f"cost {candidate['cost']:+.3f}"
    return f"worth {_worth(candidate):+.3f} at a price of {candidate['worth_price']:.3f}"


def _refusal(candidate: dict[str, Any]) -> str:
    """Return why the request of a candidate's decision was refused."""
    if not candidate["refused"]:
        return "nobody"
    reason = ShedReason[candidate["refused"]]
    if reason is ShedReason.LATE and _is_by_worth(candidate):
        return "it is worth its price at no replica that was looked at"
    return str(shed_text(reason))


def _why_not(candidate: dict[str, Any], chosen: dict[str, Any] | None) -> str:
    name = candidate["replica"]
    if not candidate["view_is_available"]:
        return f"{name} was not asked: it is down."
    if candidate["view_mask"]:
        return f"{name} was not asked: it {mask_text(int(candidate['view_mask']))}."
    if candidate["is_barred"]:
        return f"{name} was not asked: the tenant's rules keep it away."
    is_by_worth = _is_by_worth(candidate)
    if is_by_worth and math.isinf(candidate["cost"]):
        return f"{name} was not looked at: it could not hold the request, or others cost less."
    if chosen is None:
        if is_by_worth:
            return f"{name} would have been {_verdict(candidate)}."
        return f"{name} would have cost {candidate['cost']:+.3f}."
    terms = (
        {f"worth_{name}": text for name, text in _WORTH_TEXTS.items()}
        if is_by_worth
        else {f"term_{n}": _TERM_TEXTS.get(n, n.replace("_", " ")) for n in TERM_NAMES}
    )
    differences = {term: candidate[term] - chosen[term] for term in terms}
    most = max(differences, key=lambda term: differences[term])
    margin = candidate["cost"] - chosen["cost"]
    if is_by_worth and margin <= 0:
        return f"{name} did as well; of equals the one that costs less is taken."
    if margin <= 0:
        return f"{name} cost {candidate['cost']:+.3f}, no more, but could not hold the request."
    text = terms[most]
    return f"{name} lost by {margin:.3f}, mostly for {text} ({differences[most]:+.3f})."


def explain_request(directory: Path, request_id: str) -> Explanation:
    """Return what a decision log holds of a request.

    Raises:
        UnknownRequestError: it holds nothing of it.
    """
    request = _newest(directory / REQUESTS, request_id)
    candidates = _newest(directory / CANDIDATES, request_id)
    if not request and not candidates:
        parts = sorted((directory / REQUESTS).glob("part-*.parquet"))
        examples = ""
        if parts:
            ids = pq.read_table(parts[-1], columns=["request_id"])["request_id"].to_pylist()
            examples = f"; the newest that it holds are {', '.join(ids[-3:])}"
        msg = (
            f"the decision log in '{directory}' holds nothing of request '{request_id}'{examples}; "
            "requests are written some seconds after their end"
        )
        raise UnknownRequestError(msg)
    last = max((row["decision"] for row in candidates), default=0)
    return Explanation(
        request=request[-1] if request else None,
        candidates=tuple(row for row in candidates if row["decision"] == last),
    )


def _newest(folder: Path, request_id: str) -> list[dict[str, Any]]:
    """Return the rows of a request, from the newest part that has some."""
    for part in sorted(folder.glob("part-*.parquet"), reverse=True):
        ids = pq.read_table(part, columns=["request_id"])["request_id"]
        if not pc.any(pc.equal(ids, request_id)).as_py():
            continue
        table = pq.read_table(part)
        rows: list[dict[str, Any]] = table.filter(
            pc.equal(table["request_id"], request_id)
        ).to_pylist()
        return rows
    return []
