"""A cluster for commands: small, so that its saturation is found quickly."""

from pathlib import Path

import pytest

_TWO_KINDS = """\
name: two-kinds
servers:
  - {name: a, gpu: H100-80G, num_gpus: 2, zone: z0}
  - {name: b, gpu: L40S-48G, num_gpus: 1, zone: z0}
replicas:
  - {server: a, model: llama-3-8b, gpus: [0]}
  - {server: a, model: llama-3-8b, gpus: [1]}
  - {server: b, model: llama-3-8b, gpus: [0]}
"""


@pytest.fixture(scope="session")
def two_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a cluster of two fast replicas and a slow one."""
    path = tmp_path_factory.mktemp("cluster") / "two-kinds.yaml"
    path.write_text(_TWO_KINDS)
    return path
