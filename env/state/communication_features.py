"""Features of the communication dimension: NVLink, PCIe, network, collectives, experts.

Does not know: other dimensions; `registry.py` puts them together.
Source: NVML GPM metric and field ids as in nvidia-ml-py; DCGM fields as in dcgm-exporter.
"""

from .feature import (
    BYTES_PER_S,
    COUNT,
    HOPS,
    LATENCY,
    PER_S,
    SHARE,
    TRAFFIC,
    Dimension,
    Feature,
    Live,
    Node,
    Scale,
    feature_maker,
)

_feature = feature_maker(Dimension.COMMUNICATION)

_CATALOGUE = {Live.CONFIG: "GPU catalogue by NVML name"}
_NVLINK_TX = {Live.NVML: "GPM NVLINK_TOTAL_TX_PER_SEC, else field NVLINK_THROUGHPUT_DATA_TX",
              Live.DCGM: "DCGM_FI_PROF_NVLINK_TX_BYTES"}  # fmt: skip
_NVLINK_RX = {Live.NVML: "GPM NVLINK_TOTAL_RX_PER_SEC, else field NVLINK_THROUGHPUT_DATA_RX",
              Live.DCGM: "DCGM_FI_PROF_NVLINK_RX_BYTES"}  # fmt: skip
_PCIE_TX = {Live.NVML: "GPM PCIE_TX_PER_SEC, else field PCIE_COUNT_TX_BYTES",
            Live.DCGM: "DCGM_FI_PROF_PCIE_TX_BYTES"}  # fmt: skip
_PCIE_RX = {Live.NVML: "GPM PCIE_RX_PER_SEC, else field PCIE_COUNT_RX_BYTES",
            Live.DCGM: "DCGM_FI_PROF_PCIE_RX_BYTES"}  # fmt: skip

_GPU = (
    _feature(Node.GPU, "nvlink_bytes_per_s", "B/s", BYTES_PER_S, "at best, one direction",
             live=_CATALOGUE, simulator="GPU catalogue; absent without NVLink"),
    _feature(Node.GPU, "nvlink_tx_frac", "share of peak", SHARE, "sending, mean of the window",
             live=_NVLINK_TX, simulator="all-reduces of the window, KV that leaves at this moment"),
    _feature(Node.GPU, "nvlink_rx_frac", "share of peak", SHARE, "receiving, mean of the window",
             live=_NVLINK_RX, simulator="all-reduces of the window, KV that comes at this moment"),
    _feature(Node.GPU, "nvlink_max_frac", "share of peak", SHARE, "most in the window, either way",
             live=_NVLINK_TX, simulator=None),
    _feature(Node.GPU, "nvlink_hops", "hops", HOPS,
             "to the other GPUs of its replica: 0 alone, 1 direct, 2 over a switch or PCIe",
             live={Live.NVML: "NvLinkRemotePciInfo, TopologyCommonAncestor"},
             simulator="placement: 0 alone, 1 over NVLink, 2 over PCIe"),
    _feature(Node.GPU, "nvlink_links_up_frac", "share of links", SHARE, "",
             live={Live.NVML: "nvmlDeviceGetNvLinkState"}, simulator=None),
    _feature(Node.GPU, "nvlink_errors_per_s", "1/s", PER_S, "CRC errors and replays",
             live={Live.NVML: "fields NVLINK_CRC_*"}, simulator=None),
    _feature(Node.GPU, "pcie_bytes_per_s", "B/s", BYTES_PER_S, "at best, one direction",
             live=_CATALOGUE, simulator="GPU catalogue"),
    _feature(Node.GPU, "pcie_tx_frac", "share of peak", SHARE, "sending, mean of the window",
             live=_PCIE_TX, simulator="KV that leaves at this moment; all-reduces without NVLink"),
    _feature(Node.GPU, "pcie_rx_frac", "share of peak", SHARE, "receiving, mean of the window",
             live=_PCIE_RX,
             simulator="KV that comes and weights being loaded at this moment, copies waited for"),
    _feature(Node.GPU, "pcie_link_frac", "share of most", SHARE,
             "generation and width in use: below 1, the link trained down",
             live={Live.NVML: "nvmlDeviceGetCurrPcieLinkGeneration, Width over Max"},
             simulator=None),
    _feature(Node.GPU, "pcie_replays_per_s", "1/s", PER_S, "",
             live={Live.NVML: "nvmlDeviceGetPcieReplayCounter",
                   Live.DCGM: "DCGM_FI_DEV_PCIE_REPLAY_COUNTER"}, simulator=None),
)  # fmt: skip

_REPLICA = (
    _feature(Node.REPLICA, "all_reduce_wait_frac", "share of busy time", SHARE,
             "in which its GPUs wait for each other's results",
             live={}, simulator="latency model: transfers between its GPUs, of the mean iteration"),
    _feature(Node.REPLICA, "pipeline_bubble_frac", "share of busy time", SHARE,
             "in which a pipeline stage has nothing to do; 0 without pipeline stages",
             live={}, simulator="1 - tokens of the mean batch / stages, where a batch has fewer"),
    _feature(Node.REPLICA, "expert_messages_per_s", "1/s", TRAFFIC,
             "tokens routed to experts, once for each expert and layer; 0 for dense models",
             live={}, simulator="tokens x experts per token x expert layers"),
    _feature(Node.REPLICA, "expert_bytes_per_s", "B/s", TRAFFIC,
             "hidden vectors that go to experts on other GPUs; 0 for dense models",
             live={}, simulator="messages x hidden bytes x share on other GPUs"),
    _feature(Node.REPLICA, "kv_in_bytes_per_s", "B/s", TRAFFIC, "KV that comes from other replicas",
             live={Live.VLLM: "vllm:nixl_bytes_transferred_sum"},
             simulator="transfers in progress to it at this moment"),
    _feature(Node.REPLICA, "kv_out_bytes_per_s", "B/s", TRAFFIC, "KV that goes to other replicas",
             live={Live.VLLM: "vllm:nixl_bytes_transferred_sum"},
             simulator="transfers in progress from it at this moment"),
    _feature(Node.REPLICA, "moving_requests", "requests", COUNT, "whose KV is on its way here",
             live={}, simulator="sequences at this moment whose pages are taken and KV is to come"),
)  # fmt: skip

_SERVER = (
    _feature(Node.SERVER, "network_bytes_per_s", "B/s",
             Scale(low=1e8, high=1e12, normaliser="log10", offset=10.0, scale=1.0),
             "at best, one direction",
             live={Live.CONFIG: "cluster file", Live.HOST: "/sys/class/net/*/speed"},
             simulator="cluster file"),
    _feature(Node.SERVER, "nvlink_bytes_per_s", "B/s", Scale(low=0, high=1e12, scale=4.5e11),
             "of one GPU at best, one direction; 0 without NVLink",
             live=_CATALOGUE, simulator="GPU catalogue"),
    _feature(Node.SERVER, "network_tx_frac", "share of peak", SHARE, "sending",
             live={Live.HOST: "/proc/net/dev, /sys/class/infiniband/*/ports/*/counters"},
             simulator="transfers in progress over its uplink"),
    _feature(Node.SERVER, "network_rx_frac", "share of peak", SHARE, "receiving",
             live={Live.HOST: "/proc/net/dev, /sys/class/infiniband/*/ports/*/counters"},
             simulator="transfers in progress over its downlink"),
    _feature(Node.SERVER, "rdma_bytes_per_s", "B/s", TRAFFIC, "RDMA throughput, both directions",
             live={Live.HOST: "/sys/class/infiniband/*/ports/*/counters/port_*_data"},
             simulator="transfers in progress over its uplink and downlink"),
    _feature(Node.SERVER, "rtt_s", "s", LATENCY, "round trip to the hub, least of the window",
             live={Live.HOST: "clock round trips"}, simulator="twice the network latency"),
    _feature(Node.SERVER, "rtt_jitter_s", "s", LATENCY, "round trip, spread over the window",
             live={Live.HOST: "clock round trips"}, simulator=None),
    _feature(Node.SERVER, "clock_error_s", "s", LATENCY, "bound of the error of its clock offset",
             live={Live.HOST: "clock round trips"}, simulator=None),
)  # fmt: skip

_LINK = (
    *(
        _feature(Node.LINK, f"is_{kind}", "0 or 1", SHARE, meaning,
                 live={Live.CONFIG: "cluster file"}, simulator="cluster file")
        for kind, meaning in (
            ("nvlink", "NVLink fabric of a server"),
            ("pcie", "PCIe root of a server"),
            ("network", "a server's network adapter"),
            ("backbone", "path between two zones"),
        )
    ),
    _feature(Node.LINK, "bytes_per_s", "B/s", BYTES_PER_S, "at best, one direction",
             live={Live.CONFIG: "cluster file"}, simulator="topology"),
    _feature(Node.LINK, "latency_s", "s", LATENCY, "to set up a transfer",
             live={Live.CONFIG: "cluster file", Live.HOST: "clock round trips"},
             simulator="topology"),
    _feature(Node.LINK, "out_frac", "share of peak", SHARE, "in use, out of the server",
             live=_NVLINK_TX | {Live.HOST: "/proc/net/dev"},
             simulator="transfers in progress, and all-reduces on NVLink"),
    _feature(Node.LINK, "in_frac", "share of peak", SHARE, "in use, into the server",
             live=_NVLINK_RX | {Live.HOST: "/proc/net/dev"},
             simulator="transfers in progress, and all-reduces on NVLink"),
    _feature(Node.LINK, "health_frac", "share of bandwidth", SHARE, "left by degradation",
             live={Live.NVML: "nvmlDeviceGetNvLinkState, PCIe link generation and width"},
             simulator="least factor of its NVLink or PCIe links; absent for network paths"),
    _feature(Node.LINK, "transfers", "transfers", COUNT, "in progress",
             live={}, simulator="transfers in progress that cross it"),
)  # fmt: skip

_FLEET = (
    _feature(Node.FLEET, "network_frac", "share of peak", SHARE, "mean over servers, both ways",
             live={Live.HOST: "/proc/net/dev"}, simulator="transfers in progress"),
)  # fmt: skip

COMMUNICATION_FEATURES: tuple[Feature, ...] = (*_GPU, *_REPLICA, *_SERVER, *_LINK, *_FLEET)
