"""Latents in units in which noise of one size is fair to all: unit variance, without breaking the symmetry."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ophio.cloud import Cloud
from ophio.irreps import expand_degrees, pad_degrees, split


class Standardizer(nn.Module):
    """Centred positions over their unit, features over one scale for each degree and channel.

    Only scalars lose their mean: for any other degree a shift would single out a direction. Until `set_statistics`, it
    changes nothing but the origin.
    """

    position_unit: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, lmax: int, channels: int):
        super().__init__()
        self.register_buffer("position_unit", torch.ones(()))  # Å
        self.register_buffer("mean", torch.zeros(1, channels))
        self.register_buffer("scale", torch.ones(lmax + 1, channels))

    def set_statistics(self, statistics: Mapping[str, Tensor], position_spread: float) -> None:
        """From `latent_statistics`; standardised positions will have a standard deviation of `position_spread`."""
        self.position_unit.copy_(statistics["position_std"] / position_spread)
        self.mean.copy_(statistics["mean"])
        self.scale.copy_(statistics["scale"])

    def forward(self, cloud: Cloud) -> Cloud:
        """From latents of the autoencoder (positions in Å) to standardised ones, centred."""
        features = (cloud.features - self._mean(cloud)) / expand_degrees(self.scale)
        return Cloud(cloud.positions / self.position_unit, features, cloud.mask).center()

    def inverse(self, cloud: Cloud) -> Cloud:
        """Back, but for the origin."""
        features = cloud.features * expand_degrees(self.scale) + self._mean(cloud)
        return Cloud(cloud.positions * self.position_unit, features * cloud.mask[..., None, None], cloud.mask)

    def _mean(self, cloud: Cloud) -> Tensor:
        return pad_degrees(self.mean, cloud.lmax)


def latent_statistics(positions: Tensor, features: Tensor) -> dict[str, Tensor]:
    """Of many nodes: positions [n, 3] (Å, centred chain by chain), features [n, S, C].

    Returns `position_std` (Å, of one coordinate), `mean` [1, C] of the scalars, `scale` [lmax + 1, C]: standard deviation
    of the scalars, root mean square of a component for the higher degrees.
    """
    scalars, *rest = split(features.double())
    mean = scalars.mean(0)
    scales = [(scalars - mean).square().mean((0, 1)).sqrt(), *(part.square().mean((0, 1)).sqrt() for part in rest)]
    statistics = {
        "position_std": positions.double().square().mean().sqrt(),
        "mean": mean,
        "scale": torch.stack(scales).clamp(min=1e-3),  # a channel that is never used stays near zero
    }
    return {name: value.float() for name, value in statistics.items()}
