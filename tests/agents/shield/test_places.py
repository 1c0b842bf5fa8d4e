"""Which replicas stand where."""

from trimtab.agents.shield.places import places_of
from trimtab.env.cluster_file import load_cluster
from trimtab.env.state.feature import Node


def test_places_of_a_cluster_are_in_the_order_of_its_state():
    cluster = load_cluster("shared-gpus")
    places = places_of(cluster)
    at = places.replicas_at[Node.GPU]
    for name, first, end in zip(places.names[Node.GPU], at.first, at.first[1:], strict=False):
        server, gpu = name.rsplit("/gpu-", 1)
        expected = [r for r, replica in enumerate(cluster.replicas)
                    if replica.server == server and int(gpu) in replica.gpu_indices]  # fmt: skip
        assert list(at.replicas[first:end]) == expected
    at = places.replicas_at[Node.LINK]
    for i, name in enumerate(places.names[Node.LINK]):
        server = name.split("/")[0]
        on_server = {r for r, one in enumerate(cluster.replicas) if one.server == server}
        behind = set(at.replicas[at.first[i] : at.first[i + 1]].tolist())
        assert behind <= on_server
        if name.endswith("/network"):
            assert behind == on_server
    assert all(places.replicas_at[node].replicas.size == 0 for node in (Node.TENANT, Node.FLEET))
