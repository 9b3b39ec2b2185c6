"""Coupling coefficients of real SO(3) irreps, found from their definition rather than from a table."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from ophio.irreps.harmonics import solid_harmonics
from ophio.irreps.layout import dim


def wigner_matrix(degree: int, rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch M M"]:
    """D with Y_l(R r) = D Y_l(r), by least squares over fixed directions (float64 accuracy for a float64 rotation)."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(32, 3, generator=generator, dtype=torch.float64).to(rotation)
    points = points / points.norm(dim=-1, keepdim=True)
    part = slice(dim(degree - 1), dim(degree))
    before = solid_harmonics(points, degree)[:, part]
    after = solid_harmonics(points @ rotation.mT, degree)[..., part]
    return (torch.linalg.pinv(before) @ after).mT


@cache
def clebsch_gordan(left: int, right: int, out: int) -> Float[Tensor, "M1 M2 M3"]:
    """The invariant tensor of three degrees (Wigner 3j in the real basis), unit norm, float64.

    It spans the null space of D x D x D - 1 over two generic rotations, which is one-dimensional where
    |left - right| <= out <= left + right. Sign: the first entry of largest magnitude is positive. It is remembered: do
    not change it in place. Raises ValueError for degrees that do not couple.
    """
    if not abs(left - right) <= out <= left + right:
        raise ValueError(f"degrees {left} and {right} do not couple to {out}")
    generator = torch.Generator().manual_seed(1)
    constraints = []
    for _ in range(2):
        rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
        rotation = rotation * torch.linalg.det(rotation)
        d1, d2, d3 = (wigner_matrix(degree, rotation) for degree in (left, right, out))
        constraints.append(torch.kron(torch.kron(d1, d2), d3) - torch.eye(len(d1) * len(d2) * len(d3), dtype=d1.dtype))
    tensor = torch.linalg.svd(torch.cat(constraints)).Vh[-1]
    tensor = torch.where(tensor.abs() < 1e-10, 0.0, tensor)
    largest = (tensor.abs() > tensor.abs().max() - 1e-8).nonzero()[0]
    tensor = tensor * tensor[largest].sign()
    return tensor.view(2 * left + 1, 2 * right + 1, 2 * out + 1)
