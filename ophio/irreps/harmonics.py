"""Real solid harmonics, degree 0 to 4."""

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor


def solid_harmonics(vectors: Float[Tensor, "*batch 3"], lmax: int) -> Float[Tensor, "*batch S"]:
    """r^l Y_l(r): polynomials in the vector, hence smooth at 0. Of a unit vector: the spherical harmonics.

    Component normalisation: the squares of degree l sum to (2l+1) |r|^2l. Basis and order are those of e3nn.
    """
    if not 0 <= lmax <= 4:
        raise ValueError(f"spherical harmonics are written out for lmax 0 to 4, not {lmax}")
    x, y, z = vectors.unbind(-1)
    parts = [torch.ones_like(x)]
    if lmax >= 1:
        parts += [sqrt(3) * x, sqrt(3) * y, sqrt(3) * z]
    if lmax >= 2:
        xx, yy, zz = x * x, y * y, z * z
        zero, two = sqrt(15) * x * z, sqrt(5) * (yy - 0.5 * (xx + zz))
        parts += [zero, sqrt(15) * x * y, two, sqrt(15) * y * z, 0.5 * sqrt(15) * (zz - xx)]
    if lmax >= 3:
        parts += [
            0.25 * sqrt(70) * x * (3 * zz - xx),
            sqrt(105) * x * y * z,
            0.25 * sqrt(42) * x * (4 * yy - xx - zz),
            0.5 * sqrt(7) * y * (2 * yy - 3 * (xx + zz)),
            0.25 * sqrt(42) * z * (4 * yy - xx - zz),
            0.5 * sqrt(105) * y * (zz - xx),
            0.25 * sqrt(70) * z * (zz - 3 * xx),
        ]
    if lmax >= 4:
        rr = xx + yy + zz
        parts += [
            1.5 * sqrt(35) * x * z * (zz - xx),
            0.75 * sqrt(70) * x * y * (3 * zz - xx),
            1.5 * sqrt(5) * x * z * (7 * yy - rr),
            0.75 * sqrt(10) * x * y * (7 * yy - 3 * rr),
            0.375 * (35 * yy * yy - 30 * yy * rr + 3 * rr * rr),
            0.75 * sqrt(10) * y * z * (7 * yy - 3 * rr),
            0.75 * sqrt(5) * (zz - xx) * (7 * yy - rr),
            0.75 * sqrt(70) * y * z * (zz - 3 * xx),
            0.375 * sqrt(35) * (zz * zz - 6 * xx * zz + xx * xx),
        ]
    return torch.stack(parts, dim=-1)


def symmetric_traceless(degree_two: Float[Tensor, "*batch 5"]) -> Float[Tensor, "*batch 3 3"]:
    """The matrix Q of an l=2 feature: the feature r^2 Y_2(d) of a vector d gives Q = d d^T - |d|^2 / 3."""
    xz, xy, yy, yz, zz_xx = (degree_two / sqrt(15)).unbind(-1)
    trace_y = yy * (2 / sqrt(3))  # = (2 yy - xx - zz) / 3 of d d^T
    rest = -0.5 * trace_y
    rows = [rest - zz_xx, xy, xz, xy, trace_y, yz, xz, yz, rest + zz_xx]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))
