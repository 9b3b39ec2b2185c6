"""Equivariant layer norm."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ophio.irreps import join, split


class EquivariantNorm(nn.Module):
    """LayerNorm on the scalars; degrees l > 0 divided by the RMS over their components and channels.

    Args:
        lmax: highest degree.
        channels: width.
        affine: learn one scale for each degree and channel, and a shift for the scalars.
        eps: added to the variance; keeps all-zero (masked) nodes finite.
    """

    def __init__(self, lmax: int, channels: int, affine: bool = True, eps: float = 1e-4):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(lmax + 1, channels)) if affine else None
        self.shift = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, features: Float[Tensor, "*batch S C"]) -> Float[Tensor, "*batch S C"]:
        scalars, *rest = split(features)
        width = scalars.shape[-1:]
        parts = [F.layer_norm(scalars, width, eps=self.eps)]
        parts += [part * (part.square().mean((-2, -1), keepdim=True) + self.eps).rsqrt() for part in rest]
        if self.scale is not None:
            parts = [part * scale for part, scale in zip(parts, self.scale, strict=True)]
            parts[0] = parts[0] + self.shift
        return join(parts)
