"""What moves at this moment: transfers in progress, by link and by replica.

Does not know: all-reduces, which are no transfers (`work.py`).
"""

import numpy as np

from ...compiled import compiled
from ...state.feature import Node
from ...state.registry import column
from ..layout import WEIGHT_TRANSFER
from ..memory import fleet_of, links_of, ports_of, transfers_of

# Columns of the traffic of a replica, bytes/s over all its GPUs.
NVLINK_OUT, NVLINK_IN, PCIE_OUT, PCIE_IN, KV_OUT, KV_IN, NUM_TRAFFIC = range(7)

_KV_OUT_RATE = column(Node.REPLICA, "kv_out_bytes_per_s")
_KV_IN_RATE = column(Node.REPLICA, "kv_in_bytes_per_s")
_IS_NVLINK = column(Node.LINK, "is_nvlink")
_IS_PCIE = column(Node.LINK, "is_pcie")
_BYTES_PER_S = column(Node.LINK, "bytes_per_s")
_OUT = column(Node.LINK, "out_frac")
_IN = column(Node.LINK, "in_frac")
_HEALTH = column(Node.LINK, "health_frac")
_TRANSFERS = column(Node.LINK, "transfers")
_TX = column(Node.SERVER, "network_tx_frac")
_RX = column(Node.SERVER, "network_rx_frac")
_RDMA = column(Node.SERVER, "rdma_bytes_per_s")
_NETWORK = column(Node.SERVER, "network_bytes_per_s")
_DISK = column(Node.SERVER, "disk_read_frac")
_FLEET_NETWORK = column(Node.FLEET, "network_frac")


@compiled
def fill_traffic(handle, parts, rates, traffic, links):
    """Fill bytes/s by link and by replica, and count the transfers that cross each link node.

    Shapes: `parts` LINK_PART_DTYPE [T links of the topology]; `rates` [T] and `traffic`
    [R, NUM_TRAFFIC], written; `links` [link nodes, features], transfers written.
    """
    sim = handle[0]
    rates[:] = 0.0
    traffic[:] = 0.0
    links[:, _TRANSFERS] = 0.0
    for t in range(fleet_of(sim).num_transfers):
        transfer = transfers_of(sim)[t]
        if transfer.has_begun == 0:
            continue
        for k in range(transfer.num_links):
            rates[transfer.links[k]] += transfer.bytes_per_s * transfer.shares[k]
            _count(transfer, k, parts, links)
        _add_to_replicas(sim, transfer, traffic)


@compiled
def _count(transfer, k, parts, links):
    """Count a transfer at the node of its k-th link, once for each node."""
    node = parts[transfer.links[k]].node
    is_new = node >= 0
    for earlier in range(k):
        is_new = is_new and parts[transfer.links[earlier]].node != node
    if is_new:
        links[node, _TRANSFERS] += 1.0


@compiled
def _add_to_replicas(sim, transfer, traffic):
    source, target = traffic[transfer.source], traffic[transfer.target]
    rate = transfer.bytes_per_s
    if not np.isfinite(rate):
        return  # on one GPU: nothing moves
    if transfer.kind == WEIGHT_TRANSFER:
        target[PCIE_IN] += rate
        return
    source[KV_OUT] += rate
    target[KV_IN] += rate
    if transfer.num_links == 0:
        return
    is_nvlink = transfer.links[0] == ports_of(sim)[transfer.source].nvlink_out
    source[NVLINK_OUT if is_nvlink else PCIE_OUT] += rate
    target[NVLINK_IN if is_nvlink else PCIE_IN] += rate


@compiled
def fill_links(handle, parts, rates, sums, links):
    """Fill use and health of link nodes.

    What is left of a network path cannot be seen; of NVLink and PCIe the driver shows it.

    Shapes: `parts` and `rates` as above; `sums` [link nodes, 2], bytes/s of all-reduces on each,
    out and in; `links` [link nodes, features], written.
    """
    for t in range(parts.size):
        node = parts[t].node
        if node < 0:
            continue
        sums[node, 0 if parts[t].is_outward != 0 else 1] += rates[t]
        if links[node, _IS_NVLINK] + links[node, _IS_PCIE] > 0.0:
            factor = links_of(handle[0])[t].factor
            known = links[node, _HEALTH]
            links[node, _HEALTH] = factor if np.isnan(known) else min(known, factor)
    for node in range(links.shape[0]):
        links[node, _OUT] = min(1.0, sums[node, 0] / links[node, _BYTES_PER_S])
        links[node, _IN] = min(1.0, sums[node, 1] / links[node, _BYTES_PER_S])


@compiled
def fill_kv_rates(traffic, rows):
    """Fill the KV that replicas send and get. Shapes: `rows` [R, features], written."""
    for r in range(rows.shape[0]):
        rows[r, _KV_OUT_RATE] = traffic[r, KV_OUT]
        rows[r, _KV_IN_RATE] = traffic[r, KV_IN]


@compiled
def fill_networks(handle, facts, rates, sums, rows, fleet):
    """Fill what servers' adapters and disks carry.

    Shapes: `facts` SERVER_DTYPE [S]; `rates` [T]; `sums` [link nodes, 2]; `rows` [S, features]
    and `fleet` [1, features], written.
    """
    total = 0.0
    for s in range(facts.size):
        out, into = sums[facts[s].network, 0], sums[facts[s].network, 1]
        peak = rows[s, _NETWORK]
        rows[s, _TX], rows[s, _RX] = min(1.0, out / peak), min(1.0, into / peak)
        rows[s, _RDMA] = out + into
        disk = facts[s].disk
        rows[s, _DISK] = min(1.0, rates[disk] / links_of(handle[0])[disk].bytes_per_s)
        total += 0.5 * (rows[s, _TX] + rows[s, _RX])
    fleet[0, _FLEET_NETWORK] = total / facts.size
