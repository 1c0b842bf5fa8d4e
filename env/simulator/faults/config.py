"""Settings of hidden trouble: one group of fields a kind, each off unless its rate is above 0.

Does not know: how trouble is drawn (`drawing.py`) or read from a file (`..fault_file`).
"""

from dataclasses import dataclass, field

from .bounds import Factor, Frac, OpenFrac, Positive, Quantiles, Rate, Share, Span, check_bounds


class _Bounded:
    """Base of the groups: checks the bounds that the fields' types carry."""

    __slots__ = ()

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift(_Bounded):
    """Slow-downs that wander: thermal ramps and neighbours, a mean-reverting process.

    The factor on iteration time is exp(max(0, x)), x an Ornstein-Uhlenbeck process around 0,
    held for `step_s`.
    """

    sigma_log: Rate = 0.0
    """Standard deviation of x, of each replica's own process."""
    server_sigma_log: Rate = 0.0
    """The same for each server's, added to that of its replicas."""
    relax_s: Positive = 120.0
    """Time in which a deviation falls to 1/e."""
    step_s: Positive = 5.0
    """Time for which a value is held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links(_Bounded):
    """Links that lose bandwidth for some time."""

    degradations_per_hour: Rate = 0.0
    """Per link of the topology."""
    bandwidth_factor: Share = (0.1, 0.7)
    """Range of what is left of the bandwidth; overlapping ones multiply."""
    nvlink_degradations_per_hour: Rate = 0.0
    """Per replica of several GPUs: a link of its group."""
    nvlink_slowdown_factor: Span = (1.2, 3.0)
    """Range of the factor on that replica's iteration time."""
    span_s: Span = (30.0, 600.0)
    """Range of their length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outages(_Bounded):
    """Losses of whole things, each down until it is repaired; the replicas on it are lost."""

    per_hour: Rate = 0.0
    """Per GPU, server or zone."""
    burst_frac: OpenFrac = 0.0
    """Chance that a loss is followed by another of the same kind, and so on."""
    burst_gap_s: Positive = 60.0
    """Mean time between the losses of a burst."""
    down_quantiles_s: Quantiles = (60.0, 600.0)
    """Quantiles of the time down, at evenly spaced probabilities from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot(_Bounded):
    """Capacity that the cloud takes back: up and down by turns."""

    server_frac: Frac = 0.0
    """Share of the servers that are spot capacity, drawn from the seed; at least one if above 0."""
    up_quantiles_s: Quantiles = (3600.0, 36_000.0)
    """Quantiles of the time for which a server is had."""
    down_quantiles_s: Quantiles = (600.0, 3600.0)
    """Quantiles of the time until one can be had again."""
    notice_s: Rate = 120.0
    """Warning before the reclaim, in which the gateway sends nothing new."""
    is_zone_wide: bool = False
    """Whether the spot servers of a zone come and go together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalls(_Bounded):
    """Engines that stop iterating for some time and go on; nothing is lost, nothing reported."""

    per_hour: Rate = 0.0
    """Per replica."""
    span_s: Span = (1.0, 10.0)
    """Range of a stall's length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvFailures(_Bounded):
    """Spans in which a share of the KV pages cannot be had; the metrics page does not say so."""

    per_hour: Rate = 0.0
    """Per replica."""
    pages_frac: Share = (0.2, 0.6)
    """Range of the share of all pages."""
    span_s: Span = (10.0, 60.0)
    """Range of such a span's length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics(_Bounded):
    """What is wrong with the engines' metrics pages."""

    delay_s: Rate = 0.0
    """What is read at t describes t - delay; in whole scrape intervals."""
    outages_per_hour: Rate = 0.0
    """Per replica: all scrapes of it are lost, so its state's age grows."""
    outage_span_s: Span = (5.0, 60.0)
    """Range of their length."""
    freezes_per_hour: Rate = 0.0
    """Per replica: the page shows old values as if they were fresh."""
    freeze_span_s: Span = (5.0, 60.0)
    """Range of their length."""
    queue_lies_per_hour: Rate = 0.0
    """Per replica: waiting and running counts are reported times a factor."""
    queue_lie_factor: Factor = (0.0, 0.3)
    """Range of that factor."""
    queue_lie_span_s: Span = (10.0, 120.0)
    """Range of their length."""
    detection_delay_s: Rate = 0.0
    """Time for which a dead replica still reports healthy and is sent requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultConfig(_Bounded):
    """Rates and sizes of hidden trouble."""

    replica_slowdowns_per_hour: Rate = 0.0
    """Per replica."""
    server_slowdowns_per_hour: Rate = 0.0
    """Per server, hitting all its replicas."""
    slowdown_factor: Span = (1.3, 2.2)
    """Range of the factor on iteration time."""
    slowdown_span_s: Span = (15.0, 60.0)
    """Range of a slow-down's length."""
    crashes_per_hour: Rate = 0.0
    """Per replica."""
    restart_span_s: Span = (30.0, 120.0)
    """Range of the time from crash to ready."""
    acceleration: Positive = 1.0
    """How much faster than real time GPU, server, zone and spot losses come and are repaired. The
    share of time down stays; real losses are far too rare to be learned from otherwise."""
    drift: Drift = field(default_factory=Drift)
    """Wandering slow-downs."""
    links: Links = field(default_factory=Links)
    """Slow links."""
    gpu_loss: Outages = field(default_factory=Outages)
    """A GPU fails: the replica on it is down."""
    server_loss: Outages = field(default_factory=Outages)
    """A server fails: all its replicas are down."""
    zone_loss: Outages = field(default_factory=Outages)
    """A zone fails: all its servers are down."""
    spot: Spot = field(default_factory=Spot)
    """Servers that the cloud takes back."""
    stalls: Stalls = field(default_factory=Stalls)
    """Engines that hang for a while."""
    kv_failures: KvFailures = field(default_factory=KvFailures)
    """KV pages that cannot be had."""
    metrics: Metrics = field(default_factory=Metrics)
    """Metrics pages that are late, absent or wrong."""
