"""The gate: scalars decide how much of every channel passes."""

from jaxtyping import Float
from torch import Tensor, nn

from ophio.irreps import scale_degrees, split


class Gate(nn.Module):
    """Scales every channel of every degree by a two-layer perceptron of the scalars; a SiLU on the scalars themselves."""

    def __init__(self, lmax: int, channels: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, (lmax + 1) * channels), nn.Sigmoid()
        )

    def forward(self, features: Float[Tensor, "*batch S C"]) -> Float[Tensor, "*batch S C"]:
        parts = split(features)
        gates = self.mlp(parts[0].squeeze(-2)).unflatten(-1, (len(parts), -1))
        return scale_degrees(parts, 2 * gates)  # 2: an untrained sigmoid is one half
