"""Sites that are quick to play."""

from trimtab.env.sites import Pool, RegimeKind, Shape, Site, Split, Traffic


def make_site(
    *,
    shape: Shape = Shape.CONVERSATION,
    regimes: tuple[RegimeKind, ...] = (),
    split: Split = Split.TRAIN,
    **settings: object,
) -> Site:
    """Four replicas of an 8B on two kinds of GPU, with synthetic traffic."""
    values: dict[str, object] = {
        "split": split,
        "number": 0,
        "model": "llama-3-8b",
        "pools": (
            Pool(gpu="A100-80G", num_replicas=3, gpus_per_replica=1),
            Pool(gpu="L40S-48G", num_replicas=1, gpus_per_replica=1),
        ),
        "kv_frac": 1.0,
        "traffic": Traffic(shape=shape),
        "ttft_slo_s": (0.8, 3.2),
        "tpot_slo_s": (0.06, 0.12),
        "urgent_frac": 0.5,
        "scrape_interval_s": 0.1,
        "slowdown_strength": 0.0,
        "beliefs": (),
        "load_frac": 0.8,
        "regimes": regimes,
    }
    return Site(**{**values, **settings})  # type: ignore[arg-type]
