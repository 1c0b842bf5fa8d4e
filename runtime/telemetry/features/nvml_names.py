"""Which GPU of the catalogue a driver means by a product name.

Does not know: what the GPU can do (`env/hardware.py`), or how the name is read (`..probes`).
Source: NVML product names as `nvidia-smi -L` prints them.
"""

from ....env.hardware import GPUS, Gpu

CATALOGUE_NAMES: dict[str, str] = {
    "NVIDIA A100-SXM4-40GB": "A100-40G",
    "NVIDIA A100-PCIE-40GB": "A100-40G",
    "NVIDIA A100-SXM4-80GB": "A100-80G",
    "NVIDIA A100 80GB PCIe": "A100-80G",
    "NVIDIA H100 80GB HBM3": "H100-80G",
    "NVIDIA H100 PCIe": "H100-80G",
    "NVIDIA H200": "H200-141G",
    "NVIDIA B200": "B200-180G",
    "NVIDIA L40S": "L40S-48G",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTXPRO6000-96G",
}
"""Catalogue name by NVML product name."""


def catalogue_gpu(name: str) -> Gpu | None:
    """Return the catalogue's GPU of an NVML product name, or of its own name; None if unknown."""
    return GPUS.get(CATALOGUE_NAMES.get(name, name))
