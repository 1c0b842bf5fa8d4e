"""Sites to play, and one row for each episode under each contender.

A row says which contender made it, knobs and settings included, so that a table that was cut goes
on where it was, and one whose contender has changed plays that one again.

Does not know: how rows are summed up.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trimtab.agents.contest import Contender, Run, play_out, run_of
from trimtab.agents.hindsight import Replay, placement_of, search
from trimtab.env.simulator.memory import HANDLE_DTYPE
from trimtab.env.sites import Episode, Site, Split, TraceLibrary, sample_site, site_episode

from .contenders import HINDSIGHT, Field, contenders
from .table import Row

SITES, CHANGING, LOADS = "sites", "changing", "loads"
STEADY_SPAN_S, CHANGING_SPAN_S = 60.0, 300.0
_MICRO = 1e6

Known = frozenset[tuple[int, str, str]]
"""Episode, contender and maker of the rows that a job has."""


@dataclass(frozen=True, slots=True)
class Job:
    """One site of one part, under all contenders."""

    part: str
    number: int
    load_frac: float | None = None
    num_episodes: int = 3
    num_searched: int = 0
    """Of the first episodes, how many are searched in hindsight."""

    @property
    def key(self) -> str:
        """What tells it from others in the file of rows."""
        return f"{self.part}/{self.number}/{self.load_frac}"


def site_of(job: Job, traces: TraceLibrary | None) -> Site:
    """Return the site of a job."""
    site = sample_site(Split.TEST, job.number, traces, is_changing=job.part == CHANGING)
    return site if job.load_frac is None else replace(site, load_frac=job.load_frac)


def maker_of(contender: Contender, field: Field) -> str:
    """Return a hash of what decides a contender's rows, the simulator's sources among it."""
    own = (contender.knobs.as_dict(), repr(contender.lookahead), contender.scrape_interval_s)
    content = [json.dumps([own, HANDLE_DTYPE.names]).encode()]
    if contender.value is not None:
        content.append(contender.value.weights.tobytes())
    if contender.make_policy is not None:
        content += [
            file.read_bytes() for file in sorted(dict(field.bundles)[contender.name].iterdir())
        ]
    return hashlib.sha256(b"".join(content)).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class JobResult:
    """What came of a job."""

    rows: list[Row]
    """Those that were not known."""
    makers: Mapping[str, str]
    """Of all contenders; rows by others are out of date."""


def run_job(
    job: Job, directory: Path | None, field: Field, cache: Path, known: Known = frozenset()
) -> JobResult:
    """Play what is not known of a site's episodes under all contenders."""
    traces = None if directory is None else TraceLibrary(directory)
    site = site_of(job, traces)
    span_s = CHANGING_SPAN_S if job.part == CHANGING else STEADY_SPAN_S
    taking_part = contenders(site, traces, field, cache)
    makers = {one.name: maker_of(one, field) for one in taking_part}
    if field.num_moves > 0 and job.num_searched > 0 and field.has(HINDSIGHT):
        searched = repr((sorted(makers.items()), field.num_moves)).encode()
        makers[HINDSIGHT] = hashlib.sha256(searched).hexdigest()[:12]
    rows: list[Row] = []
    for number in range(job.num_episodes):
        missing = {n for n, maker in makers.items() if (number, n, maker) not in known}
        if number >= job.num_searched:
            missing.discard(HINDSIGHT)
        if not missing:
            continue
        episode = site_episode(site, number, traces, span_s=span_s)
        asked = [one for one in taking_part if one.name in missing]
        starts = taking_part if HINDSIGHT in missing else []
        heads = {"job": job.key, "part": job.part, "recording": site.traffic.recording}
        for row in _episode_rows(episode, asked, starts, field):
            rows.append({**heads, "maker": makers[row["contender"]], **row})
    return JobResult(rows, makers)


def _episode_rows(
    episode: Episode, asked: list[Contender], starts: list[Contender], field: Field
) -> Iterator[Row]:
    """Play an episode; where there are `starts`, search in hindsight from the best of them."""
    best, best_goodput = None, -1.0
    for one in [*asked, *(one for one in starts if one not in asked)]:
        start_s = time.process_time()
        fleet = play_out(episode, one)
        spent_s = time.process_time() - start_s
        run = run_of(episode, one.name, fleet)
        if run.goodput_frac > best_goodput:
            best = placement_of(fleet.requests, episode.site.num_replicas)
            best_goodput = run.goodput_frac
        if one in asked:
            yield row_of(episode, run, spent_s)
    if starts and best is not None:
        replay = Replay(episode)
        start_s = time.process_time()
        found = search(replay, best, num_moves=field.num_moves)
        spent_s = time.process_time() - start_s
        run = run_of(episode, HINDSIGHT, replay.run(found.placement))
        quarters = {"by_quarter": found.goodput_by_quarter, "start": found.start_goodput}
        yield {**row_of(episode, run, spent_s), **quarters}


def row_of(episode: Episode, run: Run, spent_s: float) -> Row:
    """Return what is kept of a run."""
    kpis, site = run.kpis, episode.site
    return {
        "site": run.site,
        "shape": site.traffic.shape.value,
        "load": site.load_frac,
        "scrape_s": site.scrape_interval_s,
        "replicas": site.num_replicas,
        "episode": run.number,
        "contender": run.contender,
        "requests": kpis.num_requests,
        "goodput": run.goodput_frac,
        "by_regime": {kind.value: share for kind, share in run.goodput_by_regime.items()},
        "violations": kpis.slo_violation_frac,
        "shed": kpis.shed_frac,
        "ttft_p50_s": kpis.ttft_p50_s,
        "ttft_p99_s": kpis.ttft_p99_s,
        "tpot_p99_s": kpis.tpot_p99_s,
        "tokens_per_kwh": kpis.output_tokens_per_kwh,
        "request_us": spent_s / kpis.num_requests * _MICRO,
    }
