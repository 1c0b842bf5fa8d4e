"""The encoder's twin for training and serving without PyG: the same weights, another arithmetic.

It holds no weights of its own, so that none can drift apart: it runs the module that it is given.
Gradients flow as in the original.

Does not know: how the backends work.
"""

from torch import nn

from .attention_encoder import AttentionEncoder, EncodedGraphs
from .backend import Backend
from .compiled_attention import KERNELS
from .graph_batch import GraphBatch


class DenseEncoder(nn.Module):
    """Run an encoder by kernels, or by another backend."""

    def __init__(self, encoder: AttentionEncoder, backend: Backend = KERNELS) -> None:
        super().__init__()
        self.encoder = encoder
        self.backend = backend

    def forward(self, graphs: GraphBatch) -> EncodedGraphs:
        """Return vectors of nodes and fleets."""
        return self.encoder.run(graphs, self.backend)
