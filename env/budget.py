"""Budgets of groups of requests: buckets of tokens and of requests that fill at a steady rate.

A request needs one of the requests, and its prompt and expected output in tokens. What needs more
than a bucket can hold passes when the bucket is full and leaves it in debt. An infinite rate is
no budget; a bucket that holds nothing lets nothing pass.

Does not know: who belongs to a group, or what happens to a request that finds too little.
Source: the token bucket as in RFC 2697, with debt in place of a marked packet.
"""

import numpy as np

from .compiled import compiled

# What is left of a group's budget; negative: in debt.
BUCKET_DTYPE = np.dtype(
    [
        ("tokens", np.float64),
        ("requests", np.float64),
        ("updated_at_s", np.float64),
    ]
)

# What a bucket may lack for the rounding of moments: 1e-6 of a token or a request.
_ROUNDING = 1e-6


def full_buckets(groups: np.ndarray) -> np.ndarray:
    """Return full buckets at time 0, BUCKET_DTYPE [groups], for GROUP_DTYPE [groups]."""
    buckets = np.zeros(groups.size, dtype=BUCKET_DTYPE)
    buckets["tokens"] = groups["burst_tokens"]
    buckets["requests"] = groups["burst_requests"]
    return buckets


@compiled
def has_budget(group):
    """Whether a group's requests are counted at all; takes a GROUP_DTYPE record."""
    return group.tokens_per_s < np.inf or group.requests_per_s < np.inf


@compiled
def _filled(level, per_s, burst, span_s):
    return min(burst, level + per_s * span_s) if per_s < np.inf else burst


@compiled
def _holds(level, burst, need):
    return burst > 0.0 and level >= min(need, burst) - _ROUNDING


@compiled
def take_from_bucket(bucket, group, tokens, now_s):
    """Take one request and its tokens from a group's budget; return whether both could be had.

    Takes nothing where one of them could not. `bucket` is a BUCKET_DTYPE record, `group` a
    GROUP_DTYPE one; time does not run back.
    """
    span_s = max(0.0, now_s - bucket.updated_at_s)
    bucket.updated_at_s = max(now_s, bucket.updated_at_s)
    bucket.tokens = _filled(bucket.tokens, group.tokens_per_s, group.burst_tokens, span_s)
    bucket.requests = _filled(bucket.requests, group.requests_per_s, group.burst_requests, span_s)
    if group.tokens_per_s < np.inf and not _holds(bucket.tokens, group.burst_tokens, tokens):
        return False
    if group.requests_per_s < np.inf and not _holds(bucket.requests, group.burst_requests, 1.0):
        return False
    bucket.tokens -= tokens
    bucket.requests -= 1.0
    return True


@compiled
def give_back(bucket, group, tokens):
    """Give back what a request took that was refused after all."""
    bucket.tokens = min(group.burst_tokens, bucket.tokens + tokens)
    bucket.requests = min(group.burst_requests, bucket.requests + 1.0)


@compiled
def over_budget(groups, group_of, tokens, arrival_s):
    """Return which requests are over their group's budget, in order of arrival; bool [N].

    Shapes: `groups` GROUP_DTYPE [G]; the others [N], tokens being those that a request costs.
    """
    is_over = np.zeros(group_of.size, np.bool_)
    buckets = np.zeros(groups.size, BUCKET_DTYPE)
    for g in range(groups.size):
        buckets[g].tokens = groups[g].burst_tokens
        buckets[g].requests = groups[g].burst_requests
    for i in range(group_of.size):
        group = groups[group_of[i]]
        if has_budget(group):
            bucket = buckets[group.budget_group]
            is_over[i] = not take_from_bucket(bucket, group, float(tokens[i]), arrival_s[i])
    return is_over
