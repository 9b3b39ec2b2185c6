"""Self-interaction: each node's features multiply each other."""

from torch import nn

from ophio.cloud import Cloud
from ophio.irreps import ChannelwiseProduct, Linear
from ophio.layers.gate import Gate
from ophio.layers.norm import EquivariantNorm


class SelfInteraction(nn.Module):
    """V <- V + Linear(gate(Linear(U (+) A U x B U))) with U = norm(V) and x the channel-wise tensor product.

    The paper squares V. The product of two different maps costs the same and also contains cross products, to which a
    square is blind.

    Args:
        lmax: highest degree.
        channels: width of V.
        hidden: width of A U and B U (default: `channels`).
    """

    def __init__(self, lmax: int, channels: int, hidden: int | None = None):
        super().__init__()
        self.hidden = hidden or channels
        self.norm = EquivariantNorm(lmax, channels)
        self.factors = Linear([channels] * (lmax + 1), 2 * self.hidden)
        self.product = ChannelwiseProduct(lmax)
        self.mix = Linear([channels + paths * self.hidden for paths in self.product.paths_per_degree], channels)
        self.gate = Gate(lmax, channels)
        self.out = Linear([channels] * (lmax + 1), channels, gain=0.5)

    def forward(self, cloud: Cloud) -> Cloud:
        normed = self.norm(cloud.features)
        left, right = self.factors(normed).chunk(2, dim=-1)
        mixed = self.mix(normed, self.product(left, right))
        return cloud.replace(features=cloud.features + self.out(self.gate(mixed)))
