"""Names that clients may ask for."""

import pytest

from trimtab.env.cluster import ClusterSpec, ReplicaSpec, ServerSpec
from trimtab.runtime.engines.live_replica import EngineKind, LiveReplica
from trimtab.runtime.understanding.served_models import NameTable, ServedModel, served_models
from trimtab.traces.errors import ConfigError


def make_fleet() -> tuple[ClusterSpec, list[LiveReplica]]:
    server = ServerSpec(name="s", zone="z", gpu="H100-80G", num_gpus=3)
    models = ("llama-3-8b", "qwen3-8b", "llama-3-8b")
    replicas = tuple(
        ReplicaSpec(name=f"r{k}", server="s", model=model, gpu_indices=(k,))
        for k, model in enumerate(models)
    )
    live = [
        LiveReplica(
            name=spec.name, engine=EngineKind.VLLM, host="127.0.0.1", port=8000, model=spec.model
        )
        for spec in replicas
    ]
    return ClusterSpec(name="c", servers=(server,), replicas=replicas), live


def test_names_of_a_fleet() -> None:
    cluster, live = make_fleet()
    live[1] = LiveReplica(
        name="r1", engine=EngineKind.LLAMACPP, host="127.0.0.1", port=8001, model="/m/qwen.gguf"
    )
    models = served_models(
        cluster,
        live,
        aliases={"default": "qwen3-8b"},
        adapters={"sql": "llama-3-8b"},
        context_tokens={"llama-3-8b": 8192},
    )
    found = {m.name: (m.model_index, m.engine_name, m.adapter) for m in models}
    assert found == {
        "llama-3-8b": (0, "llama-3-8b", None),
        "/m/qwen.gguf": (1, "/m/qwen.gguf", None),
        "qwen3-8b": (1, "/m/qwen.gguf", None),
        "default": (1, "/m/qwen.gguf", None),
        "sql": (0, "sql", "sql"),
    }
    assert {m.context_tokens for m in models if m.model_index == 0} == {8192}


def test_a_name_must_stand_for_a_model_that_is_there() -> None:
    cluster, live = make_fleet()
    with pytest.raises(ConfigError, match="name 'x' stands for model 'gpt', which no replica has"):
        served_models(cluster, live, aliases={"x": "gpt"})


def test_a_name_stands_for_one_model() -> None:
    one = ServedModel(name="a", model_index=0, engine_name="a")
    with pytest.raises(ConfigError, match="served name 'a' is there twice"):
        NameTable([one, one])


def test_a_name_is_found_however_it_is_written() -> None:
    table = NameTable([ServedModel(name="modèle/1", model_index=0, engine_name="m")])
    for written in ('"modèle/1"', '"mod\\u00e8le/1"', '"mod\\u00e8le\\/1"'):
        known = table.find(written.encode())
        assert known is not None
        assert known.rewritten == b'"m"'
    assert table.find(b'"modele/1"') is None
