"""Spatial convolution: messages from the nearest nodes in space."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ophio.cloud import Cloud
from ophio.irreps import ChannelwiseProduct, Linear, expand_degrees, solid_harmonics, split
from ophio.layers.norm import EquivariantNorm


def nearest(cloud: Cloud, k: int) -> tuple[Int[Tensor, "batch n k"], Float[Tensor, "batch n k"]]:
    """Indices of the k nearest other nodes, and 1 where they are real (a short chain has fewer than k)."""
    distance = torch.cdist(cloud.positions, cloud.positions, compute_mode="donot_use_mm_for_euclid_dist")
    blocked = ~cloud.mask[:, None, :] | torch.eye(cloud.num_nodes, dtype=torch.bool, device=distance.device)
    values, index = distance.masked_fill(blocked, torch.inf).topk(min(k, cloud.num_nodes), largest=False)
    return index, values.isfinite().to(cloud.positions.dtype)


class SpatialConvolution(nn.Module):
    """V <- V + mean over k nearest nodes of Linear(U_j (+) U_j x R(|r|) Y(r)), U = norm(V).

    Quadratic in the nodes (a distance matrix): meant for the few nodes of a latent, or as an option.

    Args:
        lmax: highest degree.
        channels: width.
        neighbours: k.
        length_scale: typical distance to a neighbour, Å.
    """

    def __init__(self, lmax: int, channels: int, neighbours: int = 8, length_scale: float = 10.0):
        super().__init__()
        self.lmax, self.neighbours, self.length_scale = lmax, neighbours, length_scale
        self.norm = EquivariantNorm(lmax, channels)
        self.radial = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, (lmax + 1) * channels))
        self.product = ChannelwiseProduct(lmax)
        self.linear = Linear([channels * (1 + paths) for paths in self.product.paths_per_degree], channels, gain=0.5)

    def forward(self, cloud: Cloud) -> Cloud:
        index, real = nearest(cloud, self.neighbours)
        features = _gather(self.norm(cloud.features), index)
        vectors = (_gather(cloud.positions, index) - cloud.positions[:, :, None]) / self.length_scale
        shrink = (1 + vectors.square().sum(-1, keepdim=True)).rsqrt()
        radial = self.radial(torch.cat([1 / shrink, shrink], dim=-1)).unflatten(-1, (self.lmax + 1, -1))
        edges = solid_harmonics(vectors * shrink, self.lmax)[..., None] * expand_degrees(radial)
        messages = [torch.cat(pair, -1) for pair in zip(split(features), self.product(features, edges), strict=True)]
        weights = real / real.sum(-1, keepdim=True).clamp(min=1)
        # the mean comes before the linear map: fewer rows to multiply
        mean = [(message * weights[..., None, None]).sum(2) for message in messages]
        return cloud.replace(features=cloud.features + self.linear(mean))


def _gather(x: Tensor, index: Int[Tensor, "batch n k"]) -> Tensor:
    """[batch, n, ...] -> [batch, n, k, ...]"""
    batch = torch.arange(x.shape[0], device=x.device)[:, None, None]
    return x[batch, index]
