"""Builds the arrays of a simulation from a cluster, a workload and the fleet's settings.

Does not know: how a simulation runs.
"""

from dataclasses import dataclass, field

import numpy as np

from ..belief import Belief, believed_coefficients, split_reality
from ..budget import full_buckets
from ..cluster import (
    ClusterSpec,
    Preemption,
    ReplicaSpec,
    kv_pages,
    pcie_copy_bytes_per_s,
)
from ..dispatch import NUM_TERMS, VIEW_DTYPE
from ..emergency import Emergency
from ..energy import power_range
from ..energy_prices import EnergyConfig
from ..knobs import Knobs
from ..latency import LATENCY_DTYPE
from ..lookahead.settings import LookaheadSettings
from ..replica_latency import replica_latency
from ..restrictions import Restrictions, no_limits, unrestricted
from ..shortlist import CANDIDATE_DTYPE, MAX_HOLDERS, SHORTLIST_SIZE
from ..topology import topology_of
from ..value.labels import LabelSettings
from ..value.network import ValueNetwork
from .closed_loop import hold_back
from .cluster_setup import cap_w, fill_fleet, fill_replicas, link_arrays
from .engine_setup import engine_memory_arrays, make_cache
from .faults import FaultConfig, draw_link_events, draw_slowdowns, draw_trouble, places_of
from .faults.script import ScriptedTrouble, script_events
from .faults.slow_spans import SlowSpan, with_slow_spans
from .fleet_loop import begin
from .guardrails import assign_groups, group_costs, set_limits
from .layout import (
    EVENT_DTYPE,
    FLEET_DTYPE,
    GATEWAY_DTYPE,
    NONE,
    NUM_PRIORITIES,
    PAGE_DTYPE,
    REPLICA_DTYPE,
    SCRAPED_DTYPE,
    SEQUENCE_DTYPE,
    SimulationArrays,
)
from .life import life_arrays
from .lookahead_setup import judges_of, lookahead_arrays
from .memory import handle
from .served_models import model_of_names, served_models
from .shadow import shadow_arrays
from .snapshot import copy_array
from .start_up import StartUpConfig
from .tariffs import set_tariffs, tariff_events
from .workload import Workload

# Expected output of a request before any has finished; near the mean of public chat traces.
INITIAL_OUTPUT_TOKENS = 200.0
# Fleets from this size on are scored through a subset, unless the settings say otherwise; how many
# replicas are walked through then. Both: at most 0.5 points of goodput lost (the tests measure it).
SUBSET_REPLICAS = 256
SUBSET_CANDIDATES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """How a simulated fleet behaves beyond its cluster."""

    scrape_interval_s: float = 0.05
    """Time between reads of the engines' metrics pages; llm-d's default. Its weights live on them:
    at 0.2 s they lose a fifth of their goodput in the demo, and others nothing."""
    scrape_drop_frac: float = 0.02
    """Share of those reads that are lost."""
    faults: FaultConfig = field(default_factory=FaultConfig)
    """Hidden trouble."""
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    """What energy costs."""
    num_gateways: int = 1
    """Gateways, each with its own counts, averages and scrapes. A session stays with one; a request
    without session counts as a session of its own."""
    num_candidates: int | None = None
    """Replicas that the analytic scorer walks through per request, beside those that hold most of
    the prompt and the cheapest of late. 0: it scores all; None: 0 below 256 replicas, else 32."""
    start_up: StartUpConfig = field(default_factory=StartUpConfig)
    """What it takes to start and wake replicas."""
    kv_overlap_frac: float = 0.0
    """Share of a prompt's KV that has moved by the end of its prefill, layer by layer; that part
    is taken to cost no bandwidth."""
    is_single_step: bool = False
    """Simulate every iteration by itself; slower, for testing the jump."""
    watched_request: int | None = None
    """Row of the request whose life is noted, for `..request_life`; the run stays the same."""
    closed_loop_requests: int = 0
    """Requests in flight, all sent at 0; when one ends, the next of the trace arrives. 0: open
    loop, requests arrive when the trace says."""
    closed_loop_gap_s: float = 0.0
    """Time between the end of a request and the arrival of the next, in a closed loop."""
    is_async_scheduling: bool = False
    """Engines compose a batch while the one before it runs (vLLM's async scheduling, SGLang's
    overlap): a request that arrives at a busy engine waits for one iteration more."""

    script: tuple[ScriptedTrouble, ...] = ()
    """Trouble at known moments, beside what is drawn."""
    slow_spans: tuple[SlowSpan, ...] = ()
    """Slow-downs of known spans, beside those that are drawn."""
    beliefs: tuple[Belief, ...] = ()
    """By kind of GPU, how far the latency coefficients are off that the scheduler believes."""
    emergencies: frozenset[Emergency] = frozenset(Emergency)
    """Emergency actions that the engines can do."""
    restrictions: Restrictions | None = None
    """What each tenant's requests may use; None lets all use all."""
    lookahead: LookaheadSettings | None = None
    """Places requests by short rollouts of the scorer's cheapest candidates; None: by cost."""
    value: ValueNetwork | None = None
    """Judges candidates instead of rollouts, where the knob `value_weight` asks for it; by default
    the closed form alone."""
    labels: LabelSettings | None = None
    """Notes what candidates are worth, for the network to learn; `SimulatedFleet.labels`."""

    def __post_init__(self) -> None:
        if self.scrape_interval_s <= 0:
            msg = f"scrape_interval_s must be above 0, got {self.scrape_interval_s}"
            raise ValueError(msg)
        if not 0 <= self.scrape_drop_frac < 1:
            msg = f"scrape_drop_frac must be in [0, 1), got {self.scrape_drop_frac}"
            raise ValueError(msg)
        if not 0 <= self.kv_overlap_frac <= 1:
            msg = f"kv_overlap_frac must be in [0, 1], got {self.kv_overlap_frac}"
            raise ValueError(msg)
        if self.num_gateways < 1:
            msg = f"num_gateways must be at least 1, got {self.num_gateways}"
            raise ValueError(msg)
        if self.num_candidates is not None and self.num_candidates < 0:
            msg = f"num_candidates must be at least 0 or None, got {self.num_candidates}"
            raise ValueError(msg)
        for name in ("closed_loop_requests", "closed_loop_gap_s"):
            if not getattr(self, name) >= 0:
                msg = f"{name} must be at least 0, got {getattr(self, name)}"
                raise ValueError(msg)


def replica_coefficients(cluster: ClusterSpec) -> np.ndarray:
    """Return the nominal coefficients of each replica, LATENCY_DTYPE [R]."""
    table = np.zeros(len(cluster.replicas), dtype=LATENCY_DTYPE)
    for i, replica in enumerate(cluster.replicas):
        table[i : i + 1] = replica_latency(
            cluster.gpu_of(replica), cluster.model_of(replica), replica
        )
    return table


def _fill_replica(record: np.ndarray, cluster: ClusterSpec, replica: ReplicaSpec) -> None:
    gpu, num_gpus = cluster.gpu_of(replica), replica.num_gpus
    power = power_range(gpu, num_gpus)
    record["is_up"] = 1
    record["slow_factor"] = 1.0
    record["token_budget_frac"] = 1.0
    record["freeze_tokens"] = np.inf
    record["max_num_seqs"] = replica.max_num_seqs
    record["max_batch_tokens"] = replica.max_batch_tokens
    record["total_pages"] = record["free_pages"] = kv_pages(cluster, replica)
    record["queue_factor"] = 1.0
    record["idle_w"] = power.idle_w
    record["decode_w"] = power.decode_low_w
    record["decode_range_w"] = power.decode_high_w - power.decode_low_w
    record["prefill_w"] = power.prefill_w
    record["power_cap_w"] = cap_w(cluster, replica, replica.power_cap_w)
    record["reserve_pages"] = int(replica.kv_watermark_frac * record["total_pages"][0])
    record["is_swapping"] = replica.preemption is Preemption.SWAP
    record["max_adapters"] = replica.max_loras
    record["adapter_load_s"] = replica.adapter_bytes / pcie_copy_bytes_per_s(gpu)
    for kind in ("waiting", "prefill", "frozen"):
        record[f"{kind}_head"] = record[f"{kind}_tail"] = NONE


def _make_replicas(cluster: ClusterSpec) -> np.ndarray:
    replicas = np.zeros(len(cluster.replicas), dtype=REPLICA_DTYPE)
    for i, replica in enumerate(cluster.replicas):
        _fill_replica(replicas[i : i + 1], cluster, replica)
    fill_replicas(replicas, cluster)
    return replicas


def _make_view(
    replicas: np.ndarray, page_tokens: int, models: np.ndarray, num_gateways: int
) -> np.ndarray:
    view = np.zeros(replicas.size, dtype=VIEW_DTYPE)
    view["is_available"] = replicas["is_up"]
    view["role"] = replicas["role"]
    view["slow_factor"] = 1.0
    view["prefill_stretch"] = 1.0
    view["kv_capacity_tokens"] = replicas["total_pages"] * page_tokens
    view["model"] = models
    view["max_outstanding"] = np.inf
    return np.tile(view, num_gateways)


def _make_gateways(config: FleetConfig, num_replicas: int) -> np.ndarray:
    """Return the gateways, GATEWAY_DTYPE [G]; their scrapes and walks are spread evenly."""
    places = np.arange(config.num_gateways)
    gateways = np.zeros(config.num_gateways, dtype=GATEWAY_DTYPE)
    gateways["next_scrape_s"] = config.scrape_interval_s * ((places + 1) / config.num_gateways)
    gateways["walk"] = places * num_replicas // config.num_gateways
    gateways["expected_output_tokens"] = INITIAL_OUTPUT_TOKENS
    return gateways


def _make_shortlists(num_rows: int) -> np.ndarray:
    """Return empty shortlists with room for holders, CANDIDATE_DTYPE [num_rows, ...]."""
    shortlists = np.zeros((num_rows, SHORTLIST_SIZE + MAX_HOLDERS), dtype=CANDIDATE_DTYPE)
    shortlists["replica"] = NONE
    return shortlists


def _make_random(num_gateways: int, seed: int) -> np.ndarray:
    """Return the states of the random streams, uint64 [2 G]: dispatch and scrapes of each."""
    gateways = np.repeat(np.arange(num_gateways, dtype=np.uint64), 2)
    first = np.tile(np.array([2 * seed + 1, 2 * seed + 2], dtype=np.uint64), num_gateways)
    return (first + (gateways << np.uint64(40))) * np.uint64(2**32 + 15)


def _make_event_tree(num_replicas: int) -> np.ndarray:
    leaves = 1 << max(1, (num_replicas - 1).bit_length())
    return np.full(2 * leaves, np.inf)


def _requests_of(workload: Workload, models: tuple[str, ...]) -> np.ndarray:
    """Return the requests with the models that a cluster serves, REQUEST_DTYPE [N]."""
    requests = copy_array(workload.requests)
    if len(models) > 1:
        known = model_of_names(workload.model_names, models, workload.name)
        requests["query"]["model"] = known[requests["query"]["model"]]
    elif len(workload.model_names) > 1:
        requests["query"]["model"] = 0
    return requests


def _make_fleet(
    config: FleetConfig, workload: Workload, page_tokens: int, num_replicas: int
) -> np.ndarray:
    fleet = np.zeros(1, dtype=FLEET_DTYPE)
    fleet["scrape_interval_s"] = config.scrape_interval_s
    fleet["next_scrape_s"] = config.scrape_interval_s / config.num_gateways
    fleet["scrape_drop_frac"] = config.scrape_drop_frac
    automatic = SUBSET_CANDIDATES if num_replicas >= SUBSET_REPLICAS else 0
    chosen = automatic if config.num_candidates is None else config.num_candidates
    fleet["num_candidates"] = min(chosen, num_replicas)
    fleet["page_tokens"] = page_tokens
    fleet["page_shift"] = page_tokens.bit_length() - 1
    fleet["block_pages"] = max(1, workload.block_tokens // page_tokens)
    fleet["is_single_step"] = config.is_single_step
    fleet["watched_request"] = NONE if config.watched_request is None else config.watched_request
    fleet["page_lag"] = round(config.faults.metrics.delay_s / config.scrape_interval_s)
    fleet["is_async_scheduling"] = config.is_async_scheduling
    fleet["num_clients"] = config.closed_loop_requests
    fleet["closed_loop_gap_s"] = config.closed_loop_gap_s
    fleet["shed_limits"] = fleet["shrink_tokens"] = np.inf
    return fleet


def _page_tokens(cluster: ClusterSpec, workload: Workload) -> int:
    sizes = {replica.page_tokens for replica in cluster.replicas}
    if len(sizes) != 1:
        msg = f"all replicas must have the same page_tokens, got {sorted(sizes)}"
        raise ValueError(msg)
    (page_tokens,) = sizes
    if page_tokens & (page_tokens - 1):
        msg = f"page_tokens must be a power of two, got {page_tokens}"
        raise ValueError(msg)
    if workload.num_distinct_blocks and workload.block_tokens % page_tokens:
        msg = (
            f"block_tokens of workload '{workload.name}' must be a multiple of page_tokens "
            f"({page_tokens}), got {workload.block_tokens}"
        )
        raise ValueError(msg)
    return page_tokens


def _pairs(actual: np.ndarray, nominal: np.ndarray) -> np.ndarray:
    """Return both coefficients of each replica as one record, [R]."""
    pairs = np.zeros(actual.size, [("actual", LATENCY_DTYPE), ("nominal", LATENCY_DTYPE)])
    pairs["actual"], pairs["nominal"] = actual, nominal
    return pairs


def _draw_events(
    cluster: ClusterSpec, config: FleetConfig, horizon_s: float, seed: int
) -> np.ndarray:
    """Return all that happens from outside, in order of time."""
    events, _ = draw_trouble(config.faults, places_of(cluster), horizon_s, seed)
    bills = np.array(tariff_events(cluster, config.energy, horizon_s), dtype=EVENT_DTYPE)
    num_links = len(topology_of(cluster).links)
    links = draw_link_events(config.faults, num_links, horizon_s, seed)
    script = script_events(config.script, len(cluster.replicas))
    events = np.concatenate([events, bills, links, script])
    return events[np.argsort(events["at_s"], kind="stable")]


def allocate(
    cluster: ClusterSpec,
    workload: Workload,
    config: FleetConfig,
    *,
    knobs: Knobs,
    seed: int,
    horizon_s: float,
) -> SimulationArrays:
    """Return the arrays of a fleet at time 0, with faults drawn up to a horizon.

    Raises:
        ValueError: page sizes differ between replicas, or do not divide the workload's blocks; or
            requests are for a model that none of several serves.
    """
    page_tokens = _page_tokens(cluster, workload)
    replicas, true = _make_replicas(cluster), replica_coefficients(cluster)
    nominal = believed_coefficients(cluster, true, config.beliefs)
    actual, constant_factors = split_reality(true, nominal)
    num_replicas, num_gateways = replicas.size, config.num_gateways
    fleet = _make_fleet(config, workload, page_tokens, num_replicas)
    fill_fleet(fleet, replicas, config.start_up, config.kv_overlap_frac)
    names = served_models(cluster)
    models = np.array([names.index(replica.model) for replica in cluster.replicas])
    block_pages = int(fleet["block_pages"][0])
    entries, table = make_cache(replicas["total_pages"], workload, block_pages)
    slots = int(replicas["max_num_seqs"].max()) + 1
    places = places_of(cluster)
    set_tariffs(replicas, cluster, config.energy)
    kinds, replicas["kind"] = np.unique(_pairs(actual, nominal), return_inverse=True)
    most_tokens = int(replicas["max_batch_tokens"].max() + replicas["max_num_seqs"].max())
    restrictions = config.restrictions or unrestricted(num_replicas)
    limits = no_limits(cluster)
    costs = group_costs(restrictions, num_replicas)
    knob_bias = np.zeros(num_replicas)
    knob_bias[: knobs.replica_bias.size] = knobs.replica_bias
    requests = _requests_of(workload, names)
    assign_groups(requests, workload, restrictions)
    fleet["next_release"] = hold_back(requests, config.closed_loop_requests)
    arrays = SimulationArrays(
        fleet=fleet,
        requests=requests,
        blocks=workload.blocks,
        pinned_entries=np.zeros(workload.blocks.size, dtype=np.int32),
        replicas=replicas,
        event_tree=_make_event_tree(num_replicas),
        actual=actual,
        nominal=nominal,
        decode_bases_s=np.full((kinds.size, slots), np.nan),
        linear_s=np.full((kinds.size, most_tokens + 1), np.nan),
        gateways=_make_gateways(config, num_replicas),
        views=_make_view(replicas, page_tokens, models, num_gateways),
        scraped=np.zeros(num_gateways * num_replicas, dtype=SCRAPED_DTYPE),
        shortlists=_make_shortlists(num_gateways * len(names) * NUM_PRIORITIES),
        sequences=np.zeros((num_replicas, slots), dtype=SEQUENCE_DTYPE),
        page_phases=np.zeros((num_replicas, page_tokens), dtype=np.int64),
        cache=entries,
        cache_table=table,
        holders=np.zeros(
            (max(1, workload.num_distinct_blocks), (num_replicas + 63) // 64), dtype=np.uint64
        ),
        slowdowns=with_slow_spans(
            draw_slowdowns(
                config.faults, places.server_of_replica, horizon_s, seed, places.gpus_of_replica
            ),
            config.slow_spans,
            constant_factors,
        ),
        events=_draw_events(cluster, config, horizon_s, seed),
        knobs=knobs.record(),
        bias=costs + knob_bias,
        group_costs=costs,
        knob_bias=knob_bias,
        penalties=np.zeros(num_replicas),
        hits=np.zeros(num_replicas, dtype=np.int64),
        matched=np.zeros(num_replicas, dtype=np.int64),
        terms=np.zeros(NUM_TERMS),
        random=_make_random(num_gateways, seed),
        **engine_memory_arrays(cluster, workload, replicas, nominal),
        **link_arrays(cluster, replicas),
        **life_arrays(config.watched_request, workload.requests.size, num_replicas),
        pages=np.zeros(
            (num_gateways, num_replicas, int(fleet["page_lag"][0]) + 1), dtype=PAGE_DTYPE
        ),
        throttled=actual.copy(),
        **shadow_arrays(num_replicas),
        groups=restrictions.groups,
        buckets=full_buckets(restrictions.groups),
        **lookahead_arrays(
            judges_of(config.lookahead, config.value, config.labels, knobs),
            replicas,
            num_gateways,
            page_tokens,
            INITIAL_OUTPUT_TOKENS,
        ),
    )
    set_limits(arrays, limits)
    begin(handle(arrays))
    return arrays
