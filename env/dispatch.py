"""The dispatch kernel: which replica takes a request, as a sum of named, weighted terms.

The simulator and the live gateway call this very code. It is pure: it reads what a gateway can
see (`VIEW_DTYPE`), the request, and the knobs, and returns a placement or a refusal.

Does not know: true output lengths, true speeds, hidden slow-downs, or how the view is kept.
Source: the analytic scorer follows the project's prototype study; the heuristics' terms follow
the routers that `agents/heuristics.py` names.
"""

import numpy as np

from ..traces.hashing import mix64
from .compiled import compiled, inlined
from .latency import base_time_s
from .masks import Mask

# What a gateway knows of one replica. "Own" counts are kept by the gateway at every dispatch,
# first token and finish; "scraped" ones are as old as the last metrics page.
VIEW_DTYPE = np.dtype(
    [
        ("is_available", np.int64),
        ("outstanding_requests", np.int64),  # own
        ("outstanding_tokens", np.float64),  # own: prompt + half the expected output
        ("pending_tokens", np.float64),  # own: uncached prompt tokens without a first token
        ("progress_at_s", np.float64),  # own: last first token, or start of the backlog
        ("ttft_log_ratio", np.float64),  # own: EWMA of log(observed / predicted TTFT)
        ("scraped_at_s", np.float64),
        ("running_requests", np.float64),  # scraped
        ("waiting_requests", np.float64),  # scraped
        ("kv_usage_frac", np.float64),  # scraped
        ("cached_frac", np.float64),  # scraped: prefix-cache tokens over KV capacity
        ("iteration_log_ratio", np.float64),  # scraped: EWMA of log(measured / nominal time)
        ("prefill_frac", np.float64),  # scraped: EWMA of the share of time spent on prefill
        ("prefill_stretch", np.float64),  # what that share does to the time between tokens
        ("decode_base_s", np.float64),  # nominal decode iteration at the scraped batch, no context
        ("slow_factor", np.float64),  # exp of the weighted log ratios
        ("kv_capacity_tokens", np.float64),  # static
        ("prefill_token_s", np.float64),  # static: nominal seconds a token of a full chunk
        ("model", np.int64),  # static: which of the fleet's models it serves
        ("role", np.int64),  # static: 0 takes all, 1 only prefill, 2 only decode
        ("mask", np.int64),  # from the shield: `Mask` bits, why nobody may send it anything
        ("max_outstanding", np.float64),  # from the shield: infinity for no limit
    ]
)

# What a gateway knows of one request.
QUERY_DTYPE = np.dtype(
    [
        ("input_tokens", np.int32),
        ("priority", np.int32),
        ("expected_output_tokens", np.float64),
        ("session_hash", np.uint64),
        ("ttft_slo_s", np.float64),
        ("tpot_slo_s", np.float64),
        ("model", np.int32),
        ("phase", np.int32),  # 0 a new request, 1 one that has its prefill behind it
        ("group", np.int32),  # row of the restrictions that it is under
        ("may_spill", np.int32),  # 1 if it may go to replicas that are kept for emergencies
    ]
)

TERM_NAMES = (
    *("random", "round_robin", "session_hash", "outstanding_requests", "outstanding_tokens"),
    *("pending_tokens", "running", "waiting", "waiting_share", "kv_usage", "cached_tokens"),
    *("prefix_miss", "predicted_ttft_s", "predicted_ttft", "tpot_hinge", "kv_hinge", "batch"),
    *("prefix_hit", "externality", "replica_bias"),
)
NUM_TERMS = len(TERM_NAMES)

# A replica that is masked for this alone takes what may spill.
_SPILL = int(Mask.SPILL)
# KV usage above which placing more work is penalised: vLLM starts to preempt near full.
KV_HINGE_FRAC = 0.8
# Batch size that the batch term is counted in.
BATCH_UNIT = 64.0
# Largest share of time that prefill is taken to use when TPOT is predicted.
MAX_PREFILL_FRAC = 0.9

# Increment of splitmix64.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@compiled
def next_uniform(random_state):
    """Advance a splitmix64 state of shape [1] and return a float in [0, 1)."""
    random_state[0] += _GOLDEN
    return (mix64(random_state[0]) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@compiled
def session_score(session_hash, replica):
    """Return the rendezvous hash of a session on a replica, in [0, 1)."""
    mixed = mix64(session_hash + _GOLDEN * np.uint64(replica + 1))
    return (mixed >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@inlined
def decode_iteration_s(view, coefficients, extra_seqs, extra_tokens):
    """Nominal decode iteration of a replica with some sequences more, as the gateway guesses it."""
    return (
        view.decode_base_s
        + coefficients.request_s * extra_seqs
        + (view.outstanding_tokens + extra_tokens) * coefficients.decode_context_s
    )


@inlined
def predicted_ttft_s(view, coefficients, knobs, uncached_tokens, now_s):
    """Predicted TTFT of a request on a replica: backlog, own prefill, iteration in progress."""
    backlog_s = knobs.backlog * view.pending_tokens * view.prefill_token_s - knobs.elapsed * (
        now_s - view.progress_at_s
    )
    own_s = uncached_tokens * view.prefill_token_s
    step_s = decode_iteration_s(view, coefficients, 0.0, 0.0)
    return view.slow_factor * (max(0.0, backlog_s) + own_s + knobs.iteration * step_s)


@compiled
def has_heuristic_terms(k):
    """Whether any term of the usual heuristics is switched on."""
    return (
        k.random_weight != 0.0
        or k.round_robin_weight != 0.0
        or k.session_hash_weight != 0.0
        or k.outstanding_requests_weight != 0.0
        or k.outstanding_tokens_weight != 0.0
        or k.pending_tokens_weight != 0.0
        or k.running_weight != 0.0
        or k.waiting_weight != 0.0
        or k.waiting_share_weight != 0.0
        or k.kv_usage_weight != 0.0
        or k.cached_tokens_weight != 0.0
        or k.prefix_miss_weight != 0.0
        or k.predicted_ttft_weight != 0.0
    )


@compiled
def _heuristic_terms(
    view, coefficients, query, knobs, uncached_tokens, now_s, replica, scale, random_state, terms
):
    """Fill the terms of the usual heuristics; return their sum.

    `scale` holds the cursor, the number of replicas, and minimum and span of waiting requests.
    """
    cursor, num_replicas, waiting_min, waiting_span = scale
    v = view[replica]
    terms[:13] = 0.0
    if knobs.random_weight != 0.0:
        terms[0] = knobs.random_weight * next_uniform(random_state)
    if knobs.round_robin_weight != 0.0:
        distance = (replica - cursor) % num_replicas
        terms[1] = knobs.round_robin_weight * distance / num_replicas
    if knobs.session_hash_weight != 0.0:
        terms[2] = knobs.session_hash_weight * session_score(query.session_hash, replica)
    terms[3] = knobs.outstanding_requests_weight * v.outstanding_requests
    terms[4] = knobs.outstanding_tokens_weight * v.outstanding_tokens
    terms[5] = knobs.pending_tokens_weight * (v.pending_tokens + uncached_tokens)
    terms[6] = knobs.running_weight * v.running_requests
    terms[7] = knobs.waiting_weight * v.waiting_requests
    if waiting_span > 0.0:
        share = (v.waiting_requests - waiting_min) / waiting_span
        terms[8] = knobs.waiting_share_weight * share
    terms[9] = knobs.kv_usage_weight * v.kv_usage_frac
    terms[10] = knobs.cached_tokens_weight * v.cached_frac
    terms[11] = knobs.prefix_miss_weight * uncached_tokens / query.input_tokens
    if knobs.predicted_ttft_weight != 0.0:
        ttft_s = predicted_ttft_s(v, coefficients, knobs, uncached_tokens, now_s)
        terms[12] = knobs.predicted_ttft_weight * ttft_s
    total = 0.0
    for i in range(13):
        total += terms[i]
    return total


@inlined
def request_limits(query):
    """What a request's costs are measured in: one over TTFT limit, TPOT limit and prompt length."""
    return 1.0 / query.ttft_slo_s, 1.0 / query.tpot_slo_s, 1.0 / query.input_tokens


@inlined
def _scorer_parts(v, coefficients, query, limits, knobs, uncached_tokens, now_s):
    """Return the terms of the analytic scorer, those from `predicted_ttft` to `externality`."""
    per_ttft, per_tpot, per_token = limits
    ttft_s = predicted_ttft_s(v, coefficients, knobs, uncached_tokens, now_s)
    batch_tokens = query.input_tokens + 0.5 * query.expected_output_tokens
    tpot_s = v.slow_factor * decode_iteration_s(v, coefficients, 1.0, batch_tokens)
    over = tpot_s * v.prefill_stretch * per_tpot - knobs.tpot_hinge_ratio
    weight_share = (coefficients.weight_s + coefficients.expert_s) * per_tpot
    is_first = query.priority == 0
    externality = knobs.externality_interactive if is_first else knobs.externality_batch
    own_s = v.slow_factor * uncached_tokens * v.prefill_token_s
    return (
        ttft_s * per_ttft,
        knobs.tpot_hinge_weight * max(0.0, over),
        knobs.kv_hinge_weight * max(0.0, v.kv_usage_frac - KV_HINGE_FRAC),
        knobs.batch_weight * v.outstanding_requests / BATCH_UNIT * weight_share,
        -knobs.hit_weight * (1.0 - uncached_tokens * per_token),
        externality * own_s * per_ttft,
    )


@inlined
def scorer_cost(v, coefficients, query, limits, knobs, uncached_tokens, now_s):
    """Cost of placing a request on a replica by the analytic scorer; takes records, no arrays."""
    parts = _scorer_parts(v, coefficients, query, limits, knobs, uncached_tokens, now_s)
    return parts[0] + parts[1] + parts[2] + parts[3] + parts[4] + parts[5]


@inlined
def can_take(view, query, bias, replica):
    """Whether a replica is up, serves model and phase, could hold the request, and may have it.

    `bias` is infinite where the request's group may not go.
    """
    v = view[replica]
    fits = query.input_tokens + query.expected_output_tokens <= v.kv_capacity_tokens
    has_role = v.role == 0 or v.role == query.phase + 1
    is_able = v.is_available != 0 and v.model == query.model and has_role and fits
    is_spared = v.mask == 0 or (v.mask == _SPILL and query.may_spill != 0)
    has_room = v.outstanding_requests < v.max_outstanding
    return is_able and is_spared and has_room and bias[replica] < np.inf


@compiled
def waiting_spread(view, query, bias):
    """Return minimum and span of the waiting requests over the replicas that can take it."""
    lowest, highest = np.inf, -np.inf
    for r in range(view.size):
        if can_take(view, query, bias, r):
            lowest = min(lowest, view[r].waiting_requests)
            highest = max(highest, view[r].waiting_requests)
    return lowest, highest - lowest


@compiled
def _cache_aware_stage(view, query, hit_tokens, knobs, bias):
    """Return which rule of the cache-aware gate applies: shortest queue, best match, free cache.

    Source: SGLang router, policy cache_aware.
    """
    fewest, most, best_hit = np.inf, 0.0, 0
    for r in range(view.size):
        if can_take(view, query, bias, r):
            outstanding = float(view[r].outstanding_requests)
            fewest, most = min(fewest, outstanding), max(most, outstanding)
            best_hit = max(best_hit, hit_tokens[r])
    is_imbalanced = (
        most - fewest > knobs.balance_abs_requests and most > knobs.balance_ratio * fewest
    )
    if is_imbalanced:
        return 0
    if best_hit > knobs.hit_threshold_frac * query.input_tokens:
        return 1
    return 2


@compiled
def _cache_aware_cost(stage, view, query, hit_tokens, replica):
    outstanding = float(view[replica].outstanding_requests)
    if stage == 0:
        return outstanding
    # Ties go to the shorter queue; one request is worth less than any share of the prompt.
    if stage == 1:
        return (query.input_tokens - hit_tokens[replica]) / query.input_tokens + 1e-9 * outstanding
    return view[replica].cached_frac + 1e-9 * outstanding


def cache_aware_costs(
    view: np.ndarray,
    query: np.ndarray,
    hit_tokens: np.ndarray,
    knobs: np.ndarray,
    bias: np.ndarray,
) -> tuple[int, list[float]]:
    """Return the rule of the cache-aware gate that applies, and each replica's cost by it."""
    stage = _cache_aware_stage(view, query[0], hit_tokens, knobs[0], bias)
    costs = [_cache_aware_cost(stage, view, query[0], hit_tokens, r) for r in range(view.size)]
    return int(stage), costs


@compiled
def choose_replica(
    view, nominal, query, hit_tokens, knobs, bias, now_s, cursor, random_state, terms
):
    """Return (whether a replica can take the request, which one is cheapest).

    `bias` [R] is that of the request's group: what is added to each cost, infinite where it may
    not go. Ties go to the lowest index, except that `num_choices` draws its candidates at random.
    """
    num_replicas = view.size
    waiting_min, waiting_span = 0.0, 0.0
    if knobs.waiting_share_weight != 0.0:
        waiting_min, waiting_span = waiting_spread(view, query, bias)
    scale = (cursor, num_replicas, waiting_min, waiting_span)
    has_heuristics = has_heuristic_terms(knobs)
    limits = request_limits(query)
    is_gated = knobs.hit_threshold_frac > 0.0
    stage = _cache_aware_stage(view, query, hit_tokens, knobs, bias) if is_gated else 0
    is_found, best, best_cost = False, 0, np.inf
    num_draws = int(knobs.num_choices)
    first = int(next_uniform(random_state) * num_replicas) if num_draws > 0 else 0
    for i in range(num_draws if num_draws > 0 else num_replicas):
        r = i
        if num_draws > 0:
            # Later draws differ from the first, so two choices are two replicas.
            offset = 1 + int(next_uniform(random_state) * (num_replicas - 1)) if i > 0 else 0
            r = (first + offset) % num_replicas
        if not can_take(view, query, bias, r):
            continue
        if is_gated:
            cost = _cache_aware_cost(stage, view, query, hit_tokens, r)
        else:
            # Arrays are kept out of inlined functions: numba would count references to them.
            uncached_tokens = query.input_tokens - hit_tokens[r]
            cost = bias[r]
            if knobs.scorer_weight != 0.0:
                cost += scorer_cost(
                    view[r], nominal[r], query, limits, knobs, uncached_tokens, now_s
                )
            if has_heuristics:
                cost += _heuristic_terms(
                    view, nominal[r], query, knobs, uncached_tokens, now_s, r,
                    scale, random_state, terms,
                )  # fmt: skip
        if cost < best_cost:
            is_found, best, best_cost = True, r, cost
    if not is_found and num_draws > 0:
        for r in range(num_replicas):
            if can_take(view, query, bias, r):
                return True, r
    return is_found, best


@compiled
def is_shed(view, nominal, query, hit_tokens, knobs, now_s, replica, most_limits):
    """Whether the request should be refused: its predicted TTFT is too far over its limit.

    Beyond `most_limits` TTFT limits it is refused whatever the knobs say; infinity for never.
    """
    if knobs.shed_enabled == 0.0 and most_limits == np.inf:
        return False
    uncached_tokens = query.input_tokens - hit_tokens[replica]
    ttft_s = predicted_ttft_s(view[replica], nominal[replica], knobs, uncached_tokens, now_s)
    limit = knobs.shed_interactive if query.priority == 0 else knobs.shed_batch
    if knobs.shed_enabled == 0.0:
        limit = np.inf
    return ttft_s > min(limit, most_limits) * query.ttft_slo_s


@compiled
def refresh_slow_factor(view, knobs, replica):
    """Recompute a replica's predicted slow-down from its two measured ratios."""
    v = view[replica]
    v.slow_factor = np.exp(
        knobs.ttft_drift * v.ttft_log_ratio + knobs.iteration_drift * v.iteration_log_ratio
    )


@compiled
def refresh_prefill_stretch(view, replica):
    """Recompute what prefill does to a replica's time per output token."""
    v = view[replica]
    v.prefill_stretch = 1.0 / (1.0 - min(v.prefill_frac, MAX_PREFILL_FRAC))


@compiled
def refresh_decode_base(view, nominal, replica, decode_seqs):
    """Recompute a replica's nominal decode iteration time at a batch size."""
    c = nominal[replica]
    seqs = max(1.0, decode_seqs)
    view[replica].decode_base_s = base_time_s(c, 0.0, 0.0, seqs)


@compiled
def full_chunk_token_s(coefficients, chunk_tokens):
    """Nominal seconds a prefill token when whole chunks are processed alone."""
    positions = chunk_tokens * (chunk_tokens + 1.0) / 2.0
    return base_time_s(coefficients, chunk_tokens, positions, 0.0) / chunk_tokens


@compiled
def fill_terms(
    view, nominal, query, hit_tokens, knobs, bias, now_s, replica, scale, random_state, terms
):
    """Fill `terms` [NUM_TERMS] with all parts of a replica's cost."""
    v, coefficients = view[replica], nominal[replica]
    uncached_tokens = query.input_tokens - hit_tokens[replica]
    _heuristic_terms(
        view, coefficients, query, knobs, uncached_tokens, now_s, replica,
        scale, random_state, terms,
    )  # fmt: skip
    terms[13:19] = 0.0
    if knobs.scorer_weight != 0.0:
        limits = request_limits(query)
        parts = _scorer_parts(v, coefficients, query, limits, knobs, uncached_tokens, now_s)
        for i in range(6):
            terms[13 + i] = parts[i]
    terms[19] = bias[replica]


def explain(
    view: np.ndarray,
    nominal: np.ndarray,
    query: np.ndarray,
    hit_tokens: np.ndarray,
    knobs: np.ndarray,
    bias: np.ndarray,
    now_s: float,
) -> list[dict[str, float]]:
    """Return, for each replica, the named parts of its cost (random and cursor terms are 0)."""
    parts = []
    scale = (0, view.size, *waiting_spread(view, query[0], bias))
    random_state = np.zeros(1, dtype=np.uint64)
    knobs = knobs.copy()
    knobs["random_weight"] = knobs["round_robin_weight"] = 0.0
    for replica in range(view.size):
        terms = np.zeros(NUM_TERMS)
        fill_terms(
            view, nominal, query[0], hit_tokens, knobs[0], bias, now_s, replica,
            scale, random_state, terms,
        )  # fmt: skip
        parts.append({name: float(t) for name, t in zip(TERM_NAMES, terms, strict=True) if t})
    return parts
