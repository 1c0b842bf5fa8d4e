"""Model files: YAML that names the sizes of one's own model.

The keys are the fields of `ModelProfile`, sizes as `config.json` has them; layers may be described
in the place of totals. Every fault of a file is reported at once, with line, key, value and
nearest key. Every `*.yaml` in `env/data/models/` is a model that `load_model` finds by its name;
so is every version in the model store.

Does not know: what the sizes mean (`model_shape.py`), or what a file may hold (`model_entry.py`).
"""

from pathlib import Path

from ..traces.errors import ConfigError
from .config_file import faults_message, file_path
from .hardware import unknown_name_message
from .model_entry import MODEL_ENTRIES as MODEL_ENTRIES
from .model_entry import read_text
from .model_profile import MODELS, add_model, known_versions
from .model_shape import ModelProfile
from .model_store import ModelStore, default_store
from .model_store import bundled_model_files as bundled_model_files
from .model_version import split_key, version_order


def read_model(path_or_name: str | Path) -> ModelProfile:
    """Read a model from a YAML or JSON file, or a bundled file by its name.

    Raises: `ConfigError` with every fault of the file: line, key path, value and nearest known key.
    """
    path = file_path("model", path_or_name)
    try:
        text = path.read_bytes()
    except OSError as error:
        msg = f"model file '{path}' cannot be read: {error}"
        raise ConfigError(msg) from error
    reading = read_text(text, is_json=path.suffix == ".json")
    if reading.profile is None:
        faults = [str(fault) for fault in reading.faults]
        raise ConfigError(faults_message("model", str(path), faults))
    return reading.profile


def load_model(path_or_name: str | Path) -> ModelProfile:
    """A model by its name, by `name@version`, or from a file; what is read joins the catalogue.

    A bare name is the model that comes with the package or was read without a version, else the
    newest version that the catalogue or the model store has. Cluster files may name what is
    loaded. Reading a model again changes nothing.

    Raises: `ConfigError` for an unknown name, a faulty file, or one that would change a model that
    the catalogue has.
    """
    if str(path_or_name) in MODELS:
        return MODELS[str(path_or_name)]
    if Path(path_or_name).is_file():
        return add_model(read_model(path_or_name), f"model file '{path_or_name}'")
    found = find_model(str(path_or_name))
    if found is None:
        names = (*known_names(), *bundled_model_files())
        known = unknown_name_message("model", str(path_or_name), names)
        msg = f"{known}; or give the path of a YAML file"
        raise ConfigError(msg)
    return found


def find_model(name: str, store: ModelStore | None = None) -> ModelProfile | None:
    """The model that `name` or `name@version` means in catalogue and store, or None."""
    if name in MODELS:
        return MODELS[name]
    if name in bundled_model_files():
        return add_model(read_model(name), f"model file '{name}'")
    store = store or default_store()
    own, version = split_key(name)
    if version is None:
        versions = [*known_versions(own), *store.versions(own)]
        if not versions:
            return None
        version = max(versions, key=version_order)
    name = f"{own}@{version}"
    if name in MODELS:
        return MODELS[name]
    if store.find(name) is None:
        return None
    return store.publish(name)


def known_names() -> tuple[str, ...]:
    """All that `find_model` finds: the catalogue's models, and the store's."""
    store = default_store()
    return tuple(dict.fromkeys((*MODELS, *store.names(), *store.model_keys())))
