"""Readers of the public profiles: figures of the tables, and the accuracy that they allow."""

from pathlib import Path

import numpy as np
import pytest
from shared_data import SHARED

import trimtab
from trimtab.env.calibration_file import bundled_calibration
from trimtab.env.datasheet import datasheet_calibration
from trimtab.env.fit_errors import predicted_parts_s, prediction_errors
from trimtab.env.fitting import START, fit, left_out_errors
from trimtab.env.hardware import GPUS, Precision
from trimtab.env.model_profile import MODELS
from trimtab.env.profiles.composition import composed_samples
from trimtab.env.profiles.dense_operators import dense_operator_samples
from trimtab.env.profiles.kernel_tables import KernelTables
from trimtab.env.profiles.operator_tables import operator_samples
from trimtab.env.profiles.public import profiled_gpus, public_samples, public_start
from trimtab.env.profiles.samples import IterationSamples, Phase, batch_columns
from trimtab.traces.errors import ConfigError

ROOT = Path(trimtab.__file__).resolve().parent
PROFILES = SHARED / "profiles"
needs_profiles = pytest.mark.skipif(
    not PROFILES.is_dir(), reason=f"no public profiles in '{PROFILES}'; set TRIMTAB_SHARED"
)


@pytest.fixture(scope="module")
def h100() -> KernelTables:
    return KernelTables(PROFILES, "H100-80G")


def make_samples(gpu_name: str, sets: list[tuple[str, int]]) -> list[IterationSamples]:
    tables = KernelTables(PROFILES, gpu_name)
    made = [composed_samples(tables, GPUS[gpu_name], MODELS[name], width) for name, width in sets]
    return [entry for entry in made if entry is not None]


def test_columns_of_a_batch_by_hand() -> None:
    row = batch_columns(*(np.array([value]) for value in (2.0, 3.0, 4.0, 40.0)), window_tokens=2)
    # two prompts of 3 tokens see 1 + 2 + 3 tokens each, through the window 1 + 2 + 2
    assert row.tolist() == [[6, 12, 4, 40, 10, 8]]


def test_gpus_without_profiles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no profiles of GPU 'L40S-48G'.*exist for A100"):
        public_samples(tmp_path, "L40S-48G")
    with pytest.raises(ConfigError, match=r"no kernel tables in .*give the folder that holds"):
        public_samples(tmp_path, "H100-80G")
    assert "RTXPRO6000-96G" in profiled_gpus()


@needs_profiles
def test_measured_kernels_are_read_as_they_stand(h100: KernelTables) -> None:
    # rows of the tables: 2,048 x 4,096 x 4,096 in BF16; 8 KB all-reduce of 8 GPUs is a few us
    one_us = 1e6 * h100.gemm_s(np.array([2048.0]), 4096, 4096, Precision.BF16)[0]
    assert one_us == pytest.approx(86.7, abs=0.1)
    # beyond the widest matrix, in proportion
    wide_s = h100.gemm_s(np.array([64.0]), 131_072, 4096, Precision.BF16)
    assert wide_s == pytest.approx(2 * h100.gemm_s(np.array([64.0]), 65_536, 4096, Precision.BF16))
    assert 4e-6 < h100.all_reduce()[8].time_s(8192.0) < 8e-6
    attention = h100.attention(32, 8, 128, is_decode=True)
    assert attention is not None
    times_s = attention.time_s(np.array([16, 16]), np.array([1024, 8192]))
    assert 1e-5 < times_s[0] < times_s[1] < 1e-3
    assert np.isnan(attention.time_s(np.array([16]), np.array([10**6]))).all()
    assert h100.attention(33, 8, 128, is_decode=True) is None


@needs_profiles
def test_composed_iterations_add_up(h100: KernelTables) -> None:
    made = composed_samples(h100, GPUS["H100-80G"], MODELS["llama-3-8b"])
    assert made is not None
    assert made.parts_s.sum(axis=1) == pytest.approx(made.times_s)
    assert [int((made.phases == phase).sum()) for phase in Phase] == [41, 115, 156]
    # 16 GB of weights at 3.35 TB/s take 4.8 ms
    assert 4.8e-3 < made.times_s.min() < 7e-3
    # 70B does not fit one GPU
    assert composed_samples(h100, GPUS["H100-80G"], MODELS["llama-3-70b"]) is None


@needs_profiles
def test_a_left_out_model_is_predicted() -> None:
    sets = make_samples("H100-80G", [("llama-3-8b", 1), ("llama-3-70b", 4), ("qwen3-32b", 4)])
    start = public_start(PROFILES, "H100-80G", START)
    fitted = fit(sets, GPUS["H100-80G"], start)
    errors = left_out_errors(sets, GPUS["H100-80G"], fitted)
    for phase in Phase:
        pooled = np.concatenate([entry.of(phase) for entry in errors])
        assert np.median(pooled) < 0.06


@needs_profiles
@pytest.mark.parametrize("gpu_name", ["A100-80G", "H100-80G", "H200-141G", "B200-180G"])
def test_bundled_calibrations_predict_the_kernels(gpu_name: str) -> None:
    calibration = bundled_calibration(gpu_name)
    assert calibration is not None
    for samples in make_samples(gpu_name, [("llama-3-8b", 1), ("llama-3-70b", 8)]):
        found = prediction_errors(samples, GPUS[gpu_name], calibration, is_left_out=False)
        for phase in Phase:
            assert np.median(found.of(phase)) < 0.05


@needs_profiles
def test_an_unseen_gpu_is_predicted_from_its_datasheet() -> None:
    known = [entry for name in ("A100-80G", "H100-80G") if (entry := bundled_calibration(name))]
    calibration = datasheet_calibration(GPUS["H200-141G"], known)
    for samples in make_samples("H200-141G", [("llama-3-8b", 1), ("llama-3-70b", 4)]):
        found = prediction_errors(samples, GPUS["H200-141G"], calibration, is_left_out=True)
        assert np.median(found.errors) < 0.2


@needs_profiles
def test_mixed_batches_of_the_operator_tables() -> None:
    made = operator_samples(PROFILES, "RTXPRO6000-96G", MODELS["qwen3-32b"])
    assert made is not None
    assert made.is_mixed_measured
    calibration = bundled_calibration("RTXPRO6000-96G")
    assert calibration is not None
    # a decode beside prefill computes about one tile of 64 rows for each query head
    assert 50 < calibration.efficiency.mixed_tile_rows < 80
    found = prediction_errors(made, GPUS["RTXPRO6000-96G"], calibration, is_left_out=False)
    assert np.median(found.of(Phase.MIXED)) < 0.05
    assert operator_samples(PROFILES, "RTXPRO6000-96G", MODELS["qwen3-30b-a3b"], 2) is None


@needs_profiles
def test_other_measurements_of_the_layers() -> None:
    made = dense_operator_samples(PROFILES, "H100-80G", MODELS["llama-3-8b"])
    calibration = bundled_calibration("H100-80G")
    assert made is None or calibration is not None
    made = dense_operator_samples(PROFILES, "A100-80G", MODELS["llama-3-8b"])
    calibration = bundled_calibration("A100-80G")
    assert made is not None
    assert calibration is not None
    parts = predicted_parts_s(made, GPUS["A100-80G"], calibration)
    assert np.median(np.abs(parts[:, 0] / made.times_s - 1)) < 0.25
