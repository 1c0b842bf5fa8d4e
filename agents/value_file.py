"""Files of a value network: its tensors as safetensors, no pickle.

Does not know: how it was trained.
"""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..env.value.network import ValueNetwork
from ..traces.errors import BundleError


def value_bytes(network: ValueNetwork) -> bytes:
    """Return a network as the content of a file."""
    return save(network.tensors)


def load_value(path: str | Path) -> ValueNetwork:
    """Read a network.

    Raises:
        BundleError: the file cannot be read, or holds no value network of this code.
    """
    try:
        return ValueNetwork.of_tensors(load(Path(path).read_bytes()))
    except (OSError, SafetensorError, ValueError) as error:
        msg = f"value network '{path}': {error}; train one with `trimtab train-value`"
        raise BundleError(msg) from error
