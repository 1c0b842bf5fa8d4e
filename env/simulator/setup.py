"""Builds the arrays of a simulation from a cluster, a workload and the fleet's settings.

Does not know: how a simulation runs.
"""

from dataclasses import dataclass, field

import numpy as np

from ..cluster import ClusterSpec, ReplicaSpec, kv_pages
from ..dispatch import NUM_TERMS, VIEW_DTYPE
from ..knobs import Knobs
from ..latency import LATENCY_DTYPE
from ..roofline import latency_coefficients
from .closed_loop import hold_back
from .faults import FaultConfig, draw_crashes, draw_slowdowns
from .fleet_loop import begin
from .layout import (
    CACHE_ENTRY_DTYPE,
    FLEET_DTYPE,
    NONE,
    REPLICA_DTYPE,
    SEQUENCE_DTYPE,
    SimulationArrays,
)
from .memory import handle
from .workload import Workload

# Expected output of a request before any has finished; near the mean of public chat traces.
INITIAL_OUTPUT_TOKENS = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """How a simulated fleet behaves beyond its cluster."""

    scrape_interval_s: float = 0.05
    """Time between reads of the engines' metrics pages; llm-d's default. Its weights live on them:
    at 0.2 s they lose a fifth of their goodput in the demo, and others nothing."""
    scrape_drop_frac: float = 0.02
    """Share of those reads that are lost."""
    faults: FaultConfig = field(default_factory=FaultConfig)
    """Hidden slow-downs and crashes."""
    is_single_step: bool = False
    """Simulate every iteration by itself; slower, for testing the jump."""
    closed_loop_requests: int = 0
    """Requests in flight, all sent at 0; when one ends, the next of the trace arrives. 0: open
    loop, requests arrive when the trace says."""
    closed_loop_gap_s: float = 0.0
    """Time between the end of a request and the arrival of the next, in a closed loop."""
    is_async_scheduling: bool = False
    """Engines compose a batch while the one before it runs (vLLM's async scheduling, SGLang's
    overlap): a request that arrives at a busy engine waits for one iteration more."""

    def __post_init__(self) -> None:
        if self.scrape_interval_s <= 0:
            msg = f"scrape_interval_s must be above 0, got {self.scrape_interval_s}"
            raise ValueError(msg)
        if not 0 <= self.scrape_drop_frac < 1:
            msg = f"scrape_drop_frac must be in [0, 1), got {self.scrape_drop_frac}"
            raise ValueError(msg)
        for name in ("closed_loop_requests", "closed_loop_gap_s"):
            if not getattr(self, name) >= 0:
                msg = f"{name} must be at least 0, got {getattr(self, name)}"
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
            pipeline_parallel=replica.pipeline_parallel,
            expert_parallel=replica.expert_parallel,
            speculation=replica.speculation,
        )
    return table


def _fill_replica(record: np.ndarray, cluster: ClusterSpec, replica: ReplicaSpec) -> None:
    gpu, num_gpus = cluster.gpu_of(replica), replica.num_gpus
    record["is_up"] = 1
    record["slow_factor"] = 1.0
    record["max_num_seqs"] = replica.max_num_seqs
    record["max_batch_tokens"] = replica.max_batch_tokens
    record["total_pages"] = record["free_pages"] = kv_pages(cluster, replica)
    record["idle_w"] = num_gpus * (gpu.idle_w + gpu.host_w)
    record["decode_w"] = num_gpus * (gpu.decode_w + gpu.host_w)
    record["prefill_w"] = num_gpus * (gpu.prefill_w + gpu.host_w)
    for field_name in ("waiting_head", "waiting_tail", "prefill_head", "prefill_tail"):
        record[field_name] = NONE


def _make_replicas(cluster: ClusterSpec) -> np.ndarray:
    replicas = np.zeros(len(cluster.replicas), dtype=REPLICA_DTYPE)
    for i, replica in enumerate(cluster.replicas):
        _fill_replica(replicas[i : i + 1], cluster, replica)
    return replicas


def _make_view(replicas: np.ndarray, page_tokens: int) -> np.ndarray:
    view = np.zeros(replicas.size, dtype=VIEW_DTYPE)
    view["is_available"] = 1
    view["slow_factor"] = 1.0
    view["prefill_stretch"] = 1.0
    view["kv_capacity_tokens"] = replicas["total_pages"] * page_tokens
    return view


def _make_fleet(config: FleetConfig, workload: Workload, page_tokens: int) -> np.ndarray:
    fleet = np.zeros(1, dtype=FLEET_DTYPE)
    fleet["scrape_interval_s"] = config.scrape_interval_s
    fleet["next_scrape_s"] = config.scrape_interval_s
    fleet["scrape_drop_frac"] = config.scrape_drop_frac
    fleet["expected_output_tokens"] = INITIAL_OUTPUT_TOKENS
    fleet["page_tokens"] = page_tokens
    fleet["page_shift"] = page_tokens.bit_length() - 1
    fleet["block_pages"] = max(1, workload.block_tokens // page_tokens)
    fleet["is_single_step"] = config.is_single_step
    fleet["is_async_scheduling"] = config.is_async_scheduling
    fleet["closed_loop_gap_s"] = config.closed_loop_gap_s
    return fleet


def _make_cache(
    replicas: np.ndarray, workload: Workload, block_pages: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return cache entries [R, C] and hash tables [R, H]; one entry if nothing can be cached."""
    most = int(replicas["total_pages"].max()) // block_pages + 1
    capacity = min(most, workload.num_distinct_blocks) + 1
    entries = np.zeros((replicas.size, capacity), dtype=CACHE_ENTRY_DTYPE)
    table_size = 1 << int(np.ceil(np.log2(2 * capacity)))
    return entries, np.zeros((replicas.size, table_size), dtype=np.int32)


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
        ValueError: page sizes differ between replicas, or do not divide the workload's blocks.
    """
    page_tokens = _page_tokens(cluster, workload)
    fleet = _make_fleet(config, workload, page_tokens)
    replicas, nominal = _make_replicas(cluster), replica_coefficients(cluster)
    num_replicas = replicas.size
    entries, table = _make_cache(replicas, workload, int(fleet["block_pages"][0]))
    slots = int(replicas["max_num_seqs"].max()) + 1
    servers = server_indices(cluster)
    kinds, replicas["kind"] = np.unique(nominal, return_inverse=True)
    most_tokens = int(replicas["max_batch_tokens"].max() + replicas["max_num_seqs"].max())
    bias = np.zeros(num_replicas)
    bias[: knobs.replica_bias.size] = knobs.replica_bias
    requests = workload.requests.copy()
    fleet["next_release"] = hold_back(requests, config.closed_loop_requests)
    arrays = SimulationArrays(
        fleet=fleet,
        requests=requests,
        blocks=workload.blocks,
        pinned_entries=np.zeros(workload.blocks.size, dtype=np.int32),
        replicas=replicas,
        next_event_s=np.full(num_replicas, np.inf),
        actual=nominal.copy(),
        nominal=nominal,
        linear_s=np.full((kinds.size, most_tokens + 1), np.nan),
        views=_make_view(replicas, page_tokens),
        sequences=np.zeros((num_replicas, slots), dtype=SEQUENCE_DTYPE),
        page_phases=np.zeros((num_replicas, page_tokens), dtype=np.int64),
        cache=entries,
        cache_table=table,
        holders=np.zeros(
            (max(1, workload.num_distinct_blocks), (num_replicas + 63) // 64), dtype=np.uint64
        ),
        slowdowns=draw_slowdowns(config.faults, servers, horizon_s, seed),
        events=draw_crashes(config.faults, num_replicas, horizon_s, seed),
        knobs=knobs.record(),
        bias=bias,
        hits=np.zeros(num_replicas, dtype=np.int64),
        terms=np.zeros(NUM_TERMS),
        random=np.array([2 * seed + 1, 2 * seed + 2], dtype=np.uint64) * np.uint64(2**32 + 15),
    )
    begin(handle(arrays))
    return arrays
