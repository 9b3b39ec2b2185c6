"""Real solid harmonics, degree 0 to 4."""

from functools import cache
from math import isqrt, sqrt

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ophio.irreps.layout import dim


def solid_harmonics(vectors: Float[Tensor, "*batch 3"], lmax: int) -> Float[Tensor, "*batch S"]:
    """r^l Y_l(r): polynomials in the vector, hence smooth at 0. Of a unit vector: the spherical harmonics.

    Component normalisation: the squares of degree l sum to (2l+1) |r|^2l. Basis and order are those of e3nn. Raises
    ValueError for `lmax` outside 0..4.
    """
    if not 0 <= lmax <= 4:
        raise ValueError(f"spherical harmonics are written out for lmax 0 to 4, not {lmax}")
    coordinates = vectors.movedim(-1, 0)
    if torch.compiler.is_compiling():
        return torch.stack(_polynomials(*coordinates, lmax), dim=-1)
    return _Harmonics.apply(coordinates, lmax).movedim(0, -1)


def _polynomials(x: Tensor, y: Tensor, z: Tensor, lmax: int) -> list[Tensor]:
    rows = [torch.ones_like(x)]
    if lmax >= 1:
        rows += [sqrt(3) * x, sqrt(3) * y, sqrt(3) * z]
    if lmax >= 2:
        xx, yy, zz = x * x, y * y, z * z
        zero, two = sqrt(15) * x * z, sqrt(5) * (yy - 0.5 * (xx + zz))
        rows += [zero, sqrt(15) * x * y, two, sqrt(15) * y * z, 0.5 * sqrt(15) * (zz - xx)]
    if lmax >= 3:
        rows += [
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
        rows += [
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
    return rows


class _Harmonics(torch.autograd.Function):
    """The same, components first, from derivatives: of degree l they are harmonics of degree l - 1, with constant
    coefficients, and Euler's theorem gives back the polynomial, l R_l = r . grad R_l."""

    @staticmethod
    def forward(ctx, coordinates: Float[Tensor, "3 *batch"], lmax: int) -> Float[Tensor, "S *batch"]:
        coordinates, ctx.terms = coordinates.contiguous(), _derivatives(lmax)
        values = coordinates.new_zeros(dim(lmax), *coordinates.shape[1:])
        values[0] = 1
        for component, axis, lower, coefficient in ctx.terms:
            degree = isqrt(component)
            values[component].addcmul_(coordinates[axis], values[lower], value=coefficient / degree)
        ctx.save_for_backward(values)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Float[Tensor, "S *batch"]) -> tuple[Float[Tensor, "3 *batch"], None]:
        (values,), gradient = ctx.saved_tensors, gradient.contiguous()
        total = values.new_zeros(3, *values.shape[1:])
        for component, axis, lower, coefficient in ctx.terms:
            total[axis].addcmul_(gradient[component], values[lower], value=coefficient)
        return total, None


@cache
def _derivatives(lmax: int) -> list[tuple[int, int, int, float]]:
    """(component, axis, lower component, coefficient): terms of d component / d axis.

    Found by least squares over random points.
    """
    with torch.enable_grad():
        points = torch.randn(32, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        rows = _polynomials(*points.unbind(-1), lmax)
        gradients = [torch.autograd.grad(row.sum(), points, retain_graph=True)[0] for row in rows[1:]]
    terms = []
    for degree in range(1, lmax + 1):
        lower = range(dim(degree - 2), dim(degree - 1))
        inverse = torch.linalg.pinv(torch.stack([rows[k].detach() for k in lower], dim=-1))
        for component in range(dim(degree - 1), dim(degree)):
            found = inverse @ gradients[component - 1]  # [lower component, axis]
            terms += [(component, j, lower[i], float(found[i, j])) for i, j in (found.abs() > 1e-10).nonzero().tolist()]
    return terms


def symmetric_traceless(degree_two: Float[Tensor, "*batch 5"]) -> Float[Tensor, "*batch 3 3"]:
    """The matrix Q of an l=2 feature: the feature r^2 Y_2(d) of a vector d gives Q = d d^T - |d|^2 / 3."""
    xz, xy, yy, yz, zz_xx = (degree_two / sqrt(15)).unbind(-1)
    trace_y = yy * (2 / sqrt(3))  # = (2 yy - xx - zz) / 3 of d d^T
    rest = -0.5 * trace_y
    rows = [rest - zz_xx, xy, xz, xy, trace_y, yz, xz, yz, rest + zz_xx]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))
