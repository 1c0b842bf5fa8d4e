"""The features that the short-term policy sees, read in one call: training does so every window.

Does not know: the other features.
"""

import numpy as np

from ...compiled import compiled
from ...state.feature import Node
from ...state.registry import column

_IS_AVAILABLE = column(Node.REPLICA, "is_available")
_OUTSTANDING = column(Node.REPLICA, "outstanding_requests")
_PENDING_PREFILL = column(Node.REPLICA, "pending_prefill_s")
_RUNNING = column(Node.REPLICA, "running_requests")
_WAITING = column(Node.REPLICA, "waiting_requests")
_KV_USAGE = column(Node.REPLICA, "kv_usage_frac")
_CACHED = column(Node.REPLICA, "cached_frac")
_ITERATION_RATIO = column(Node.REPLICA, "iteration_log_ratio")
_TTFT_RATIO = column(Node.REPLICA, "ttft_log_ratio")
_PREFILL = column(Node.REPLICA, "prefill_frac")
_DECODE_ITERATION = column(Node.REPLICA, "decode_iteration_s")
_STATE_AGE = column(Node.REPLICA, "state_age_s")
_GPU_ACTIVITY = column(Node.GPU, "sm_activity_frac")
_GPU_POWER = column(Node.GPU, "power_frac")
_SERVER_POWER = column(Node.SERVER, "power_frac")
_FLEET_AVAILABLE = column(Node.FLEET, "available_frac")


@compiled
def fill_observed_replicas(view, nominal, now_s, replicas, fleet):
    """Fill what all gateways together know of each replica.

    Shapes: `view` VIEW_DTYPE [R], `nominal` LATENCY_DTYPE [R]; `replicas` [R, features] and
    `fleet` [1, features], written.
    """
    num_available = 0
    for r in range(view.size):
        v, row = view[r], replicas[r]
        num_available += v.is_available
        row[_IS_AVAILABLE] = v.is_available
        row[_OUTSTANDING] = v.outstanding_requests
        row[_PENDING_PREFILL] = v.pending_tokens * v.prefill_token_s
        row[_RUNNING] = v.running_requests
        row[_WAITING] = v.waiting_requests
        row[_KV_USAGE] = v.kv_usage_frac
        row[_CACHED] = v.cached_frac
        row[_ITERATION_RATIO] = v.iteration_log_ratio
        row[_TTFT_RATIO] = v.ttft_log_ratio
        row[_PREFILL] = v.prefill_frac
        context_s = v.outstanding_tokens * nominal[r].decode_context_s
        row[_DECODE_ITERATION] = v.decode_base_s + context_s
        row[_STATE_AGE] = now_s - v.scraped_at_s
    fleet[0, _FLEET_AVAILABLE] = num_available / view.size


@compiled
def fill_observed_gpus(facts, hosts, gpu_server, used, gpus, servers):
    """Fill activity and power of the GPUs that serve replicas, and their servers' mean power.

    A GPU with several replicas does what they do together.

    Shapes: `facts` FACTS_DTYPE [R]; `hosts` HOST_DTYPE [H]; `gpu_server` int [GPUs that serve];
    `used` [R, 2], share of time in iterations and power in W; `gpus` [any, features] and
    `servers` [S, features], written.
    """
    num_gpus = gpu_server.size
    for g in range(num_gpus):
        gpus[g, _GPU_ACTIVITY] = 0.0
        gpus[g, _GPU_POWER] = 0.0
    for h in range(hosts.size):
        g, r = hosts[h].gpu, hosts[h].replica
        f = facts[r]
        gpus[g, _GPU_ACTIVITY] += used[r, 0] * f.compute_frac
        own_w = used[r, 1] / f.num_gpus - f.host_w * f.gpu_frac
        gpus[g, _GPU_POWER] += max(own_w, 0.0) / f.tdp_w
    counts = np.zeros(servers.shape[0])
    servers[:, _SERVER_POWER] = 0.0
    for g in range(num_gpus):
        gpus[g, _GPU_ACTIVITY] = min(gpus[g, _GPU_ACTIVITY], 1.0)
        servers[gpu_server[g], _SERVER_POWER] += gpus[g, _GPU_POWER]
        counts[gpu_server[g]] += 1.0
    for s in range(servers.shape[0]):
        servers[s, _SERVER_POWER] /= max(counts[s], 1.0)
