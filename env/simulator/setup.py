"""Builds the arrays of a simulation from a cluster, a workload and the fleet's settings.

Does not know: how a simulation runs.
"""

from dataclasses import dataclass, field

import numpy as np

from ..cluster import (
    ClusterSpec,
    Preemption,
    ReplicaSpec,
    host_kv_pages,
    kv_pages,
    page_copy_s,
    pcie_copy_bytes_per_s,
)
from ..dispatch import NUM_TERMS, VIEW_DTYPE
from ..energy import power_range
from ..energy_prices import EnergyConfig
from ..knobs import Knobs
from ..latency import LATENCY_DTYPE
from ..roofline import latency_coefficients
from ..shortlist import CANDIDATE_DTYPE, MAX_HOLDERS, SHORTLIST_SIZE
from .faults import FaultConfig, draw_slowdowns, draw_trouble, places_of
from .fleet_loop import begin
from .layout import (
    ADAPTER_DTYPE,
    CACHE_ENTRY_DTYPE,
    EVENT_DTYPE,
    FLEET_DTYPE,
    GATEWAY_DTYPE,
    HOST_DTYPE,
    NONE,
    NUM_PRIORITIES,
    PAGE_DTYPE,
    REPLICA_DTYPE,
    SCRAPED_DTYPE,
    SEQUENCE_DTYPE,
    SimulationArrays,
)
from .memory import handle
from .served_models import model_of_names, served_models
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
    is_single_step: bool = False
    """Simulate every iteration by itself; slower, for testing the jump."""

    def __post_init__(self) -> None:
        if self.scrape_interval_s <= 0:
            msg = f"scrape_interval_s must be above 0, got {self.scrape_interval_s}"
            raise ValueError(msg)
        if not 0 <= self.scrape_drop_frac < 1:
            msg = f"scrape_drop_frac must be in [0, 1), got {self.scrape_drop_frac}"
            raise ValueError(msg)
        if self.num_gateways < 1:
            msg = f"num_gateways must be at least 1, got {self.num_gateways}"
            raise ValueError(msg)
        if self.num_candidates is not None and self.num_candidates < 0:
            msg = f"num_candidates must be at least 0 or None, got {self.num_candidates}"
            raise ValueError(msg)


def server_indices(cluster: ClusterSpec) -> np.ndarray:
    """Return the index of each replica's server, int64 [R]."""
    index = {server.name: i for i, server in enumerate(cluster.servers)}
    return np.array([index[replica.server] for replica in cluster.replicas], dtype=np.int64)


def replica_coefficients(cluster: ClusterSpec) -> np.ndarray:
    """Return the nominal coefficients of each replica, LATENCY_DTYPE [R]."""
    table = np.zeros(len(cluster.replicas), dtype=LATENCY_DTYPE)
    for i, replica in enumerate(cluster.replicas):
        table[i : i + 1] = latency_coefficients(
            cluster.gpu_of(replica),
            cluster.model_of(replica),
            tensor_parallel=replica.tensor_parallel,
            precision=replica.precision,
        )
    return table


def _fill_replica(record: np.ndarray, cluster: ClusterSpec, replica: ReplicaSpec) -> None:
    gpu, num_gpus = cluster.gpu_of(replica), replica.tensor_parallel
    power = power_range(gpu, num_gpus)
    record["is_up"] = 1
    record["slow_factor"] = 1.0
    record["max_num_seqs"] = replica.max_num_seqs
    record["max_batch_tokens"] = replica.max_batch_tokens
    record["total_pages"] = record["free_pages"] = kv_pages(cluster, replica)
    record["queue_factor"] = 1.0
    record["idle_w"] = record["standby_w"] = power.idle_w
    record["decode_w"] = power.decode_low_w
    record["decode_range_w"] = power.decode_high_w - power.decode_low_w
    record["prefill_w"] = power.prefill_w
    cap_w = np.inf if replica.power_cap_w is None else replica.power_cap_w
    record["power_cap_w"] = num_gpus * (cap_w + gpu.host_w)
    record["reserve_pages"] = int(replica.kv_watermark_frac * record["total_pages"][0])
    record["is_swapping"] = replica.preemption is Preemption.SWAP
    record["max_adapters"] = replica.max_loras
    record["adapter_load_s"] = replica.adapter_bytes / pcie_copy_bytes_per_s(gpu)
    for field_name in ("waiting_head", "waiting_tail", "prefill_head", "prefill_tail"):
        record[field_name] = NONE


def _make_replicas(cluster: ClusterSpec) -> np.ndarray:
    replicas = np.zeros(len(cluster.replicas), dtype=REPLICA_DTYPE)
    for i, replica in enumerate(cluster.replicas):
        _fill_replica(replicas[i : i + 1], cluster, replica)
    return replicas


def _make_hosts(cluster: ClusterSpec) -> np.ndarray:
    hosts = np.zeros(len(cluster.replicas), dtype=HOST_DTYPE)
    for host, replica in zip(hosts, cluster.replicas, strict=True):
        host["total_pages"] = host["free_pages"] = host_kv_pages(cluster, replica)
        host["page_copy_s"] = page_copy_s(cluster, replica)
        host["is_tier"] = replica.has_host_prefix_cache
    return hosts


def _make_view(
    replicas: np.ndarray, page_tokens: int, models: np.ndarray, num_gateways: int
) -> np.ndarray:
    view = np.zeros(replicas.size, dtype=VIEW_DTYPE)
    view["is_available"] = 1
    view["slow_factor"] = 1.0
    view["prefill_stretch"] = 1.0
    view["kv_capacity_tokens"] = replicas["total_pages"] * page_tokens
    view["model"] = models
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
    requests = workload.requests.copy()
    if len(models) == 1:
        requests["query"]["model"] = 0
    else:
        known = model_of_names(workload.model_names, models, workload.name)
        requests["query"]["model"] = known[requests["query"]["model"]]
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
    fleet["page_lag"] = round(config.faults.metrics.delay_s / config.scrape_interval_s)
    return fleet


def _make_cache(
    total_pages: np.ndarray, workload: Workload, block_pages: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return cache entries [R, C] and hash tables [R, H]; one entry if nothing can be cached."""
    most = int(total_pages.max()) // block_pages
    capacity = min(most + 1, workload.num_distinct_blocks) + 1 if most else 1
    entries = np.zeros((total_pages.size, capacity), dtype=CACHE_ENTRY_DTYPE)
    table_size = 1 << int(np.ceil(np.log2(2 * capacity)))
    return entries, np.zeros((total_pages.size, table_size), dtype=np.int32)


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


def _draw_events(
    cluster: ClusterSpec, config: FleetConfig, horizon_s: float, seed: int
) -> np.ndarray:
    """Return all that happens from outside, in order of time."""
    events, _ = draw_trouble(config.faults, places_of(cluster), horizon_s, seed)
    bills = np.array(tariff_events(cluster, config.energy, horizon_s), dtype=EVENT_DTYPE)
    events = np.concatenate([events, bills])
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
    replicas, nominal = _make_replicas(cluster), replica_coefficients(cluster)
    num_replicas, num_gateways = replicas.size, config.num_gateways
    fleet = _make_fleet(config, workload, page_tokens, num_replicas)
    names = served_models(cluster)
    models = np.array([names.index(replica.model) for replica in cluster.replicas])
    block_pages = int(fleet["block_pages"][0])
    entries, table = _make_cache(replicas["total_pages"], workload, block_pages)
    hosts = _make_hosts(cluster)
    host_entries, host_table = _make_cache(
        hosts["total_pages"] * hosts["is_tier"], workload, block_pages
    )
    slots = int(replicas["max_num_seqs"].max()) + 1
    places = places_of(cluster)
    set_tariffs(replicas, cluster, config.energy)
    kinds, replicas["kind"] = np.unique(nominal, return_inverse=True)
    most_tokens = int(replicas["max_batch_tokens"].max() + replicas["max_num_seqs"].max())
    bias = np.zeros(num_replicas)
    bias[: knobs.replica_bias.size] = knobs.replica_bias
    arrays = SimulationArrays(
        fleet=fleet,
        requests=_requests_of(workload, names),
        blocks=workload.blocks,
        pinned_entries=np.zeros(workload.blocks.size, dtype=np.int32),
        replicas=replicas,
        event_tree=_make_event_tree(num_replicas),
        actual=nominal.copy(),
        nominal=nominal,
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
        slowdowns=draw_slowdowns(
            config.faults, places.server_of_replica, horizon_s, seed, places.gpus_of_replica
        ),
        events=_draw_events(cluster, config, horizon_s, seed),
        knobs=knobs.record(),
        bias=bias,
        hits=np.zeros(num_replicas, dtype=np.int64),
        matched=np.zeros(num_replicas, dtype=np.int64),
        terms=np.zeros(NUM_TERMS),
        random=_make_random(num_gateways, seed),
        hosts=hosts,
        host_cache=host_entries,
        host_table=host_table,
        adapters=np.zeros(
            (num_replicas, max(1, int(replicas["max_adapters"].max()))), dtype=ADAPTER_DTYPE
        ),
        growing=np.zeros(
            (num_replicas, slots if (nominal["window_tokens"] > 0).any() else 1),
            dtype=SEQUENCE_DTYPE,
        ),
        pages=np.zeros(
            (num_gateways, num_replicas, int(fleet["page_lag"][0]) + 1), dtype=PAGE_DTYPE
        ),
        throttled=nominal.copy(),
    )
    begin(handle(arrays))
    return arrays
