"""The GPU catalogue: what each accelerator could do at most, and what it draws. A CPU is one too.

Does not know: models, tensor parallelism, or how much of a peak is reached (`roofline.py`).
Source: vendor datasheets; aiconfigurator 0.12 (`systems/*.yaml`) for memory and link sizes;
splitwise-sim for power; each group of numbers says which. "Assumed" marks a number that nobody
measured for us.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ..traces.errors import ConfigError

GIB = 2**30


class Precision(StrEnum):
    """Number format of a replica's weights and matrix multiplications."""

    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"

    @property
    def bytes_per_value(self) -> int:
        """Bytes of one weight or KV value."""
        return 1 if self in (Precision.FP8, Precision.INT8) else 2

    @property
    def attention_precision(self) -> "Precision":
        """Format of KV cache and attention: engines keep 16 bits beside 8-bit weights."""
        return Precision.BF16 if self.bytes_per_value == 1 else self


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """Peak figures of one accelerator."""

    name: str
    """Catalogue name, as used in cluster files."""
    peak_flops: Mapping[Precision, float] = field(hash=False)
    """Dense FLOP/s (no sparsity); a format that the GPU lacks is absent."""
    hbm_bytes: int
    """Memory that a driver reports."""
    hbm_bytes_per_s: float
    """Peak memory bandwidth."""
    nvlink_bytes_per_s: float | None
    """NVLink or Infinity Fabric, one direction, all links; None when there is none."""
    pcie_bytes_per_s: float
    """One direction."""
    idle_w: float
    """Powered, nothing running."""
    decode_w: float
    """Sustained decode."""
    prefill_w: float
    """Sustained prefill."""
    tdp_w: float
    """Board power limit."""
    host_w: float
    """This GPU's share of its server's idle draw (CPU, fans, network), GPUs excluded."""

    def __post_init__(self) -> None:
        """Refuse a GPU whose numbers cannot be right."""
        if not self.peak_flops:
            msg = f"GPU {self.name!r}: peak_flops must name at least one precision, got none"
            raise ValueError(msg)
        if min(self.peak_flops.values()) <= 0 or self.hbm_bytes <= 0 or self.hbm_bytes_per_s <= 0:
            msg = f"GPU {self.name!r}: peak_flops, hbm_bytes and hbm_bytes_per_s must be above 0"
            raise ValueError(msg)
        if not 0 <= self.idle_w <= self.decode_w <= self.prefill_w:
            powers_w = (self.idle_w, self.decode_w, self.prefill_w)
            msg = f"GPU {self.name!r}: idle_w <= decode_w <= prefill_w expected, got {powers_w}"
            raise ValueError(msg)

    @property
    def link_bytes_per_s(self) -> float:
        """Bandwidth between two GPUs of a server, one direction: NVLink, else PCIe."""
        return self.nvlink_bytes_per_s or self.pcie_bytes_per_s


def _peaks(
    half: float, *, fp8: float | None = None, int8: float | None = None
) -> dict[Precision, float]:
    """Peak table of a GPU whose FP16 and BF16 rates are equal; TFLOP/s in, FLOP/s out."""
    peaks = {Precision.FP16: half, Precision.BF16: half, Precision.FP8: fp8, Precision.INT8: int8}
    return {precision: 1e12 * peak for precision, peak in peaks.items() if peak is not None}


_A100_40G = Gpu(
    name="A100-40G",
    # TFLOP/s, NVIDIA A100 datasheet (SXM4); no FP8 units
    peak_flops=_peaks(312, int8=624),
    # bytes and bytes/s, same datasheet
    hbm_bytes=40 * GIB,
    hbm_bytes_per_s=1.555e12,
    # bytes/s one direction, NVLink 3 and PCIe gen 4 x16, aiconfigurator a100_sxm
    nvlink_bytes_per_s=300e9,
    pcie_bytes_per_s=32e9,
    # W, assumed equal to the 80G board (both 400 W SXM4)
    idle_w=63,
    decode_w=250,
    prefill_w=400,
    tdp_w=400,
    # W, (1,500 W idle DGX A100 - 8 x 63 W) / 8, splitwise-sim
    host_w=124.5,
)

_A100_80G = Gpu(
    name="A100-80G",
    # TFLOP/s, NVIDIA A100 datasheet (SXM4); no FP8 units
    peak_flops=_peaks(312, int8=624),
    # bytes and bytes/s, aiconfigurator a100_sxm
    hbm_bytes=80 * GIB,
    hbm_bytes_per_s=2.039e12,
    # bytes/s one direction, NVLink 3 and PCIe gen 4 x16, aiconfigurator a100_sxm
    nvlink_bytes_per_s=300e9,
    pcie_bytes_per_s=32e9,
    # W, splitwise-sim power constants
    idle_w=63,
    decode_w=250,
    prefill_w=400,
    tdp_w=400,
    # W, (1,500 W idle DGX A100 - 8 x 63 W) / 8, splitwise-sim
    host_w=124.5,
)

_H100_80G = Gpu(
    name="H100-80G",
    # TFLOP/s, NVIDIA H100 datasheet (SXM5), halved from the sparse figures
    peak_flops=_peaks(989, fp8=1979, int8=1979),
    # bytes and bytes/s, aiconfigurator h100_sxm
    hbm_bytes=80 * GIB,
    hbm_bytes_per_s=3.35e12,
    # bytes/s one direction, NVLink 4 and PCIe gen 5 x16, aiconfigurator h100_sxm
    nvlink_bytes_per_s=450e9,
    pcie_bytes_per_s=64e9,
    # W, splitwise-sim power constants
    idle_w=75,
    decode_w=380,
    prefill_w=700,
    tdp_w=700,
    # W, (2,800 W idle DGX H100 - 8 x 75 W) / 8, splitwise-sim
    host_w=275,
)

_H200_141G = Gpu(
    name="H200-141G",
    # TFLOP/s, NVIDIA H200 datasheet (SXM), halved from the sparse figures
    peak_flops=_peaks(989, fp8=1979, int8=1979),
    # bytes and bytes/s, aiconfigurator h200_sxm
    hbm_bytes=141 * GIB,
    hbm_bytes_per_s=4.8e12,
    # bytes/s one direction, NVLink 4 and PCIe gen 5 x16, aiconfigurator h200_sxm
    nvlink_bytes_per_s=450e9,
    pcie_bytes_per_s=64e9,
    # W, decode: upper end of 137-300 W in arXiv 2605.11999; idle and prefill assumed as H100
    idle_w=75,
    decode_w=300,
    prefill_w=700,
    tdp_w=700,
    # W, assumed as H100
    host_w=275,
)

_B200_180G = Gpu(
    name="B200-180G",
    # TFLOP/s, aiconfigurator b200_sxm
    peak_flops=_peaks(2250, fp8=4500, int8=4500),
    # bytes: aiconfigurator b200_sxm; bytes/s: NVIDIA HGX B200 datasheet
    hbm_bytes=180 * GIB,
    hbm_bytes_per_s=8.0e12,
    # bytes/s one direction, NVLink 5 and PCIe gen 6 x16, aiconfigurator b200_sxm
    nvlink_bytes_per_s=900e9,
    pcie_bytes_per_s=128e9,
    # W, aiconfigurator B200 kernel tables: floor, middle of decode attention, top of prefill
    idle_w=245,
    decode_w=565,
    prefill_w=950,
    tdp_w=1000,
    # W, assumed as H100
    host_w=275,
)

_L40S_48G = Gpu(
    name="L40S-48G",
    # TFLOP/s, NVIDIA L40S datasheet, halved from the sparse figures
    peak_flops=_peaks(362, fp8=733, int8=733),
    # bytes: 46,068 MiB, what the driver leaves of 48 GiB with ECC on; bytes/s: datasheet
    hbm_bytes=46_068 * 2**20,
    hbm_bytes_per_s=0.864e12,
    # bytes/s one direction, PCIe gen 4 x16, datasheet: no NVLink
    nvlink_bytes_per_s=None,
    pcie_bytes_per_s=32e9,
    # W, TDP from the datasheet; idle and decode (0.6 of TDP, as A100 and H100) assumed
    idle_w=35,
    decode_w=210,
    prefill_w=350,
    tdp_w=350,
    # W, assumed: a PCIe server of 4 idles at about 400 W without its GPUs
    host_w=100,
)

_MI300X_192G = Gpu(
    name="MI300X-192G",
    # TFLOP/s, AMD Instinct MI300X datasheet, dense
    peak_flops=_peaks(1307.4, fp8=2614.9, int8=2614.9),
    # bytes and bytes/s, same datasheet (8 stacks of 24 GiB)
    hbm_bytes=192 * GIB,
    hbm_bytes_per_s=5.3e12,
    # bytes/s one direction, 7 Infinity Fabric links of 64 GB/s, and PCIe gen 5 x16, datasheet
    nvlink_bytes_per_s=448e9,
    pcie_bytes_per_s=64e9,
    # W, TDP from the datasheet; idle and decode (0.6 of TDP) assumed
    idle_w=140,
    decode_w=450,
    prefill_w=750,
    tdp_w=750,
    # W, assumed as H100
    host_w=275,
)

_RTXPRO6000_96G = Gpu(
    name="RTXPRO6000-96G",
    # TFLOP/s, NVIDIA RTX PRO 6000 Blackwell Server Edition datasheet: an eighth (a quarter for 8
    # bits) of 4 PFLOP/s of sparse 4-bit arithmetic
    peak_flops=_peaks(500, fp8=1000, int8=1000),
    # bytes: 97,887 MiB, what the driver reports; bytes/s: same datasheet (GDDR7)
    hbm_bytes=97_887 * 2**20,
    hbm_bytes_per_s=1.597e12,
    # bytes/s one direction, PCIe gen 5 x16, same datasheet: no NVLink
    nvlink_bytes_per_s=None,
    pcie_bytes_per_s=64e9,
    # W, TDP from the datasheet; idle and decode (0.6 of TDP) assumed
    idle_w=30,
    decode_w=360,
    prefill_w=600,
    tdp_w=600,
    # W, assumed as L40S
    host_w=100,
)

# A socket of a server without GPUs, for replicas that are kept for emergencies. "HBM" is its main
# memory. Nobody measured its kernels for us: its shares of the peaks are those of the GPUs'
# datasheet rule (`datasheet.py`), assumed.
_XEON8480_256G = Gpu(
    name="XEON8480-256G",
    # TFLOP/s, Intel Xeon Platinum 8480+: 56 cores x 1,024 BF16 operations a cycle in AMX (2,048 of
    # INT8; Intel 64 and IA-32 optimization manual) x 2.0 GHz base clock; FP16 assumed to be
    # computed as BF16, which this generation's AMX has instead
    peak_flops=_peaks(114.7, int8=229.4),
    # bytes: 8 DIMMs of 32 GiB, assumed; bytes/s: 8 channels of DDR5-4800, Intel ARK
    hbm_bytes=256 * GIB,
    hbm_bytes_per_s=0.3072e12,
    # bytes/s one direction, PCIe gen 5 x16, Intel ARK; sockets are taken to be linked by it too
    nvlink_bytes_per_s=None,
    pcie_bytes_per_s=64e9,
    # W, TDP from Intel ARK; idle and decode (0.7 of TDP: memory-bound cores still spin) assumed
    idle_w=100,
    decode_w=245,
    prefill_w=350,
    tdp_w=350,
    # W, assumed: half of a two-socket server's 150 W for memory, fans and network
    host_w=75,
)

GPUS: Mapping[str, Gpu] = {
    entry.name: entry
    for entry in (
        _A100_40G,
        _A100_80G,
        _H100_80G,
        _H200_141G,
        _B200_180G,
        _L40S_48G,
        _MI300X_192G,
        _RTXPRO6000_96G,
        _XEON8480_256G,
    )
}


def gpu(name: str) -> Gpu:
    """The catalogue's GPU of this name.

    Raises: `ConfigError` for an unknown name.
    """
    if name not in GPUS:
        raise ConfigError(unknown_name_message("GPU", name, GPUS))
    return GPUS[name]


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like `name`, letter case aside, or None."""
    by_folded = {entry.casefold(): entry for entry in known}
    matches = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.5)
    return by_folded[matches[0]] if matches else None


def unknown_name_message(kind: str, name: str, known: Iterable[str]) -> str:
    """Text of the error for a name that a catalogue lacks, with the nearest and all known names."""
    names = sorted(known)
    nearest = nearest_name(name, names)
    hint = f"did you mean {nearest!r}? " if nearest else ""
    return f"unknown {kind} {name!r}; {hint}known: {', '.join(names)}"
