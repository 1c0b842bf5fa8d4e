"""The GPU catalogue: known figures, sane figures, and errors by text."""

import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.env.hardware import GIB, GPUS, Gpu, Precision, gpu, nearest_name
from trimtab.traces.errors import ConfigError

EVERY_GPU = pytest.mark.parametrize("entry", GPUS.values(), ids=list(GPUS))


@pytest.mark.parametrize(
    ("name", "bf16_flops", "hbm_bytes", "hbm_bytes_per_s", "tdp_w"),
    [
        ("A100-40G", 312e12, 40 * GIB, 1.555e12, 400),
        ("A100-80G", 312e12, 80 * GIB, 2.039e12, 400),
        ("H100-80G", 989e12, 80 * GIB, 3.35e12, 700),
        ("H200-141G", 989e12, 141 * GIB, 4.8e12, 700),
        ("B200-180G", 2250e12, 180 * GIB, 8.0e12, 1000),
        ("L40S-48G", 362e12, 46_068 * 2**20, 0.864e12, 350),
        ("MI300X-192G", 1307.4e12, 192 * GIB, 5.3e12, 750),
        ("XEON8480-256G", 114.7e12, 256 * GIB, 0.3072e12, 350),
    ],
)
def test_datasheet_figures(
    name: str, bf16_flops: float, hbm_bytes: int, hbm_bytes_per_s: float, tdp_w: float
) -> None:
    entry = gpu(name)
    assert entry.peak_flops[Precision.BF16] == pytest.approx(bf16_flops)
    assert entry.hbm_bytes == hbm_bytes
    assert entry.hbm_bytes_per_s == hbm_bytes_per_s
    assert entry.tdp_w == tdp_w


@EVERY_GPU
def test_entry_is_sane(entry: Gpu) -> None:
    assert gpu(entry.name) is entry
    assert 0 < entry.idle_w < entry.decode_w < entry.prefill_w <= 1.1 * entry.tdp_w
    assert 0 < entry.host_w < entry.tdp_w
    assert entry.peak_flops[Precision.FP16] == entry.peak_flops[Precision.BF16]
    # FLOPs a byte at the roofline's knee: 100 to 500 for every accelerator of this age
    assert 100 < entry.peak_flops[Precision.BF16] / entry.hbm_bytes_per_s < 500
    assert entry.pcie_bytes_per_s < entry.hbm_bytes_per_s
    assert int(entry.name.rpartition("-")[2].removesuffix("G")) == pytest.approx(
        entry.hbm_bytes / GIB, rel=0.07
    )


@EVERY_GPU
def test_eight_bits_are_twice_as_fast(entry: Gpu) -> None:
    for precision in (Precision.FP8, Precision.INT8):
        peak = entry.peak_flops.get(precision)
        if peak is not None:
            assert peak == pytest.approx(2 * entry.peak_flops[Precision.BF16], rel=0.02)


@EVERY_GPU
def test_entry_can_be_a_key_and_travel_to_a_worker(entry: Gpu) -> None:
    assert {entry: 1}[pickle.loads(pickle.dumps(entry))] == 1


def test_ampere_has_no_fp8() -> None:
    assert Precision.FP8 not in gpu("A100-80G").peak_flops
    assert Precision.FP8 not in gpu("A100-40G").peak_flops


def test_servers_idle_draw_is_splitwise() -> None:
    for name, server_w in (("A100-80G", 1500), ("H100-80G", 2800)):
        assert 8 * (gpu(name).host_w + gpu(name).idle_w) == pytest.approx(server_w)


def test_link_is_nvlink_where_there_is_one() -> None:
    assert gpu("H100-80G").link_bytes_per_s == 450e9
    assert gpu("L40S-48G").nvlink_bytes_per_s is None
    assert gpu("L40S-48G").link_bytes_per_s == 32e9


@pytest.mark.parametrize(
    ("precision", "num_bytes", "attention"),
    [
        (Precision.FP16, 2, Precision.FP16),
        (Precision.BF16, 2, Precision.BF16),
        (Precision.FP8, 1, Precision.BF16),
        (Precision.INT8, 1, Precision.BF16),
    ],
)
def test_precision(precision: Precision, num_bytes: int, attention: Precision) -> None:
    assert precision.bytes_per_value == num_bytes
    assert precision.attention_precision is attention


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("h100-80g", "H100-80G"),
        ("A100-80", "A100-80G"),
        ("L40S", "L40S-48G"),
        ("H200", "H200-141G"),
    ],
)
def test_unknown_gpu_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown GPU '{name}'; did you mean '{nearest}'"):
        gpu(name)


def test_unknown_gpu_lists_all() -> None:
    with pytest.raises(ConfigError, match="unknown GPU 'quux'; known: A100-40G, A100-80G, B200"):
        gpu("quux")


@given(st.text(max_size=12))
def test_nearest_name_is_known_or_none(name: str) -> None:
    assert nearest_name(name, GPUS) in {None, *GPUS}


@given(st.sampled_from(sorted(GPUS)))
def test_nearest_name_of_a_known_name_is_itself(name: str) -> None:
    assert nearest_name(name.lower(), GPUS) == name


def test_refuses_powers_out_of_order() -> None:
    with pytest.raises(ValueError, match=r"idle_w <= decode_w.*got \(63, 30, 400\)"):
        replace(gpu("A100-80G"), decode_w=30)


def test_refuses_no_peak() -> None:
    with pytest.raises(ValueError, match="peak_flops must name at least one precision, got none"):
        replace(gpu("A100-80G"), peak_flops={})


@pytest.mark.parametrize(
    "change",
    [{"hbm_bytes": 0}, {"hbm_bytes_per_s": -1.0}, {"peak_flops": {Precision.BF16: 0.0}}],
)
def test_refuses_sizes_not_above_zero(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"'A100-80G'.*must be above 0"):
        replace(gpu("A100-80G"), **change)  # type: ignore[arg-type]
