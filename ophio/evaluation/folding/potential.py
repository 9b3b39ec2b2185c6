"""Predicted distributions as an energy of backbone frames, with analytic gradients.

Every residue is a frame: origin CB, z axis towards CA, N in the half-plane of positive x. Seen from that frame, the CB
of another residue has the spherical coordinates (distance, phi, -theta), so that few operations give all four
coordinates of a pair.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from ophio.backbone import ideal_cb
from ophio.constants import CA, N
from ophio.evaluation.folding.prediction import (
    ANGLE_BINS,
    BIN_WIDTH,
    DISTANCES,
    TORSION_BINS,
    PairPrediction,
)

MIN_PROBABILITY = 1e-4
REFERENCE_EXPONENT = 1.57  # number of pairs at a distance grows as its power in folded proteins (Zhou & Zhou 2002)
TOO_CLOSE = (6.0, 4.0, 2.0, 1.0)  # added to the four nearest bins (up to 4 Å), where no distribution has counts
SMOOTHING = 0.25  # share of a bin's energy taken from each neighbour
MIN_SQUARE = 1e-2  # Å²: angles to an axis that is nearer than that are not followed


class Frames(NamedTuple):
    """Rigid backbones: rows of `axes` are x, y and z of the frame."""

    axes: Float[Tensor, "*batch 3 3"]
    ca: Float[Tensor, "*batch 3"]
    cb: Float[Tensor, "*batch 3"]


def frames_of(backbone: Float[Tensor, "*batch A 3"]) -> Frames:
    """Of N, CA and C; the CB is the ideal one."""
    ca, cb = backbone[..., CA, :], ideal_cb(backbone)
    z = functional.normalize(ca - cb, dim=-1)
    to_n = backbone[..., N, :] - ca
    x = functional.normalize(to_n - (to_n * z).sum(-1, keepdim=True) * z, dim=-1)
    return Frames(torch.stack([x, torch.linalg.cross(z, x), z], -2), ca, cb)


def energy_curves(prediction: PairPrediction) -> list[Float[Tensor, "L L _"]]:
    """Energies at the middles of the bins of distance, omega, theta and phi.

    Distances: -log of the probability over that of the last bin, scaled with distance (Yang et al. 2020, after Zhou &
    Zhou 2002), so that the energy is 0 at 20 Å. Angles: -log of the probability, given that the residues are near,
    over that of a random direction, times the probability that they are near.
    """
    p = prediction.distance[..., 1:] + MIN_PROBABILITY
    distances = DISTANCES.to(p)
    curve = -(p / p[..., -1:]).log() + REFERENCE_EXPONENT * (distances / distances[-1]).log()
    close = len(TOO_CLOSE)
    wall = curve[..., close : close + 1] + curve.new_tensor(TOO_CLOSE)
    curve = torch.cat([torch.maximum(curve[..., :close], wall), curve[..., close:]], -1)
    near = prediction.distance[..., 1:].sum(-1, keepdim=True)
    torsion = p.new_full((TORSION_BINS,), 1 / TORSION_BINS)
    edges = torch.linspace(0, math.pi, ANGLE_BINS + 1).to(p).cos()
    curves = [curve]
    angles = ((prediction.omega, torsion), (prediction.theta, torsion), (prediction.phi, (edges[:-1] - edges[1:]) / 2))
    for classes, random in angles:
        chance = classes[..., 1:] + MIN_PROBABILITY
        curves.append(-(chance / chance.sum(-1, keepdim=True) / random).log() * near)
    apart = 1 - torch.eye(prediction.num_residues).to(p)[..., None]
    return [curve * apart for curve in curves]


def _smooth(values: Float[Tensor, "*batch bins"], periodic: bool) -> Float[Tensor, "*batch bins"]:
    before, after = _neighbours(values, periodic)
    return (1 - 2 * SMOOTHING) * values + SMOOTHING * (before + after)


def _neighbours(values: Float[Tensor, "*batch bins"], periodic: bool) -> tuple[Tensor, Tensor]:
    first, last = (values[..., -1:], values[..., :1]) if periodic else (values[..., :1], values[..., -1:])
    return torch.cat([first, values[..., :-1]], -1), torch.cat([values[..., 1:], last], -1)


def _cubic(values: Float[Tensor, "*batch bins"], periodic: bool) -> Float[Tensor, "*batch bins 4"]:
    """Coefficients of the Catmull-Rom spline from each bin to the next: c0 + c1 t + c2 t² + c3 t³, t from 0 to 1."""
    before, after = _neighbours(values, periodic)
    slope = (after - before) / 2
    next_slope = _neighbours(slope, periodic)[1]
    rise = after - values
    return torch.stack([values, slope, 3 * rise - 2 * slope - next_slope, slope + next_slope - 2 * rise], -1)


@dataclass(frozen=True)
class _Curves:
    """Piecewise cubic curves of one coordinate, one for each ordered pair of residues of each sequence."""

    coefficients: Float[Tensor, "curves_x_bins 4"]
    bins: int
    periodic: bool

    @classmethod
    def of(cls, values: Sequence[Float[Tensor, "_ _ bins"]], periodic: bool, weight: float, longest: int) -> "_Curves":
        padded = []
        for value in values:
            missing = longest - len(value)
            spline = weight * _cubic(_smooth(value, periodic), periodic)
            padded.append(functional.pad(spline, (0, 0, 0, 0, 0, missing, 0, missing)))
        return cls(torch.stack(padded).flatten(0, 3), values[0].shape[-1], periodic)

    def at(self, x: Tensor, curve: Int[Tensor, "..."]) -> tuple[Tensor, Tensor]:
        """Value and slope of the given curves at `x`, in bins from the middle of the first; level beyond both ends."""
        inside = x if self.periodic else x.clamp(0, self.bins - 1)
        left = inside.floor()
        t = inside - left
        left = left.to(curve.dtype)
        if self.periodic:
            left = left.remainder_(self.bins)
        c0, c1, c2, c3 = functional.embedding(left.add_(curve, alpha=self.bins), self.coefficients).unbind(-1)
        value = torch.addcmul(c0, t, torch.addcmul(c1, t, torch.addcmul(c2, t, c3)))
        slope = torch.addcmul(c1, t, torch.addcmul(2 * c2, t, c3, value=3))
        return value, slope if self.periodic else slope * (inside == x)


class Potential:
    """Energy (nats) of frames under the predictions for one or more sequences.

    Sequences are padded to the longest; padded pairs have no energy. Every ordered pair counts, distance and omega,
    which belong to unordered pairs, half.
    """

    def __init__(self, predictions: Sequence[PairPrediction]):
        self.longest = max(prediction.num_residues for prediction in predictions)
        values = zip(*(energy_curves(prediction) for prediction in predictions), strict=True)
        kinds = ((False, 0.5), (True, 0.5), (True, 1.0), (False, 1.0))
        self.curves = [_Curves.of(v, *kind, self.longest) for v, kind in zip(values, kinds, strict=True)]

    def curve_index(self, sequence: Int[Tensor, "starts"]) -> Int[Tensor, "starts L L"]:
        """Which curve belongs to every pair of structures of the given sequences."""
        pairs = torch.arange(self.longest**2, device=sequence.device).view(self.longest, self.longest)
        return (sequence[:, None, None] * self.longest**2 + pairs).int()

    def energy(
        self, frames: Frames, curve: Int[Tensor, "starts L L"], orientation: float = 1.0
    ) -> Float[Tensor, "starts"]:
        """`curve` from `curve_index`; `orientation` weighs the angles."""
        axes = frames.axes.transpose(1, 2)  # starts, axis, L, xyz: makes planes of coordinates

        def seen(points: Tensor) -> Tensor:
            flat = axes.flatten(1, 2) @ points.transpose(1, 2)
            return flat.unflatten(1, axes.shape[1:3])

        origin = (axes * frames.cb[:, None]).sum(-1, keepdim=True)
        return _PairEnergy.apply(seen(frames.cb) - origin, seen(frames.ca - frames.cb), self.curves, curve, orientation)


class _PairEnergy(torch.autograd.Function):
    """Sum over pairs (i, j), from r = CB(j) - CB(i) and w = CA(j) - CB(j), both as seen in frame i."""

    @staticmethod
    def forward(
        ctx, r: Float[Tensor, "starts 3 L L"], w: Float[Tensor, "starts 3 L L"],
        curves: list[_Curves], curve: Int[Tensor, "starts L L"], orientation: float,
    ) -> Float[Tensor, "starts"]:  # fmt: skip
        x, y, z = r.unbind(1)
        rho2 = torch.addcmul(x * x, y, y).clamp_(min=MIN_SQUARE)
        d2 = torch.addcmul(rho2, z, z)
        d = d2.sqrt()
        energy, slope = curves[0].at((d - float(DISTANCES[0])) / BIN_WIDTH, curve)
        radial = slope / (BIN_WIDTH * d)
        if orientation == 0:
            ctx.save_for_backward(radial[:, None] * r, None)
            return energy.sum((1, 2))
        a, b, c = w.unbind(1)
        rho = rho2.sqrt()
        per_radian = TORSION_BINS / (2 * math.pi)
        # n = r x w and m = (y, -x, 0) are normal to the two planes of the torsion omega
        n = torch.stack([y * c - z * b, z * a - x * c, x * b - y * a], 1)
        omega = torch.atan2(-d * n[:, 2], n[:, 0] * y - n[:, 1] * x)
        theta = torch.atan2(-y, x)
        phi = torch.atan2(rho, z)
        e_omega, s_omega = curves[1].at((omega + math.pi) * per_radian - 0.5, curve)
        e_theta, s_theta = curves[2].at((theta + math.pi) * per_radian - 0.5, curve)
        e_phi, s_phi = curves[3].at(phi * per_radian - 0.5, curve)
        energy = torch.add(energy, e_omega + e_theta + e_phi, alpha=orientation)
        scale = orientation * per_radian
        # derivatives of the torsion by w and by m's side
        by_w = n * (scale * s_omega * d / n.square().sum(1).clamp_(min=MIN_SQUARE))[:, None]
        turn = scale * (s_omega * (z / d) + s_theta) / rho2
        tilt = scale * s_phi / (rho * d2)
        along = (x * a + y * b + z * c) / d2
        by_r = radial[:, None] * r - along[:, None] * by_w
        by_r[:, 0] += x * z * tilt + y * turn
        by_r[:, 1] += y * z * tilt - x * turn
        by_r[:, 2] -= rho2 * tilt
        ctx.save_for_backward(by_r, by_w)
        return energy.sum((1, 2))

    # torch's own takes gradients of any number
    @staticmethod
    def backward(ctx, gradient: Float[Tensor, "starts"]):  # ty: ignore[incompatible-method-override]
        by_r, by_w = ctx.saved_tensors
        weight = gradient[:, None, None, None]
        return by_r * weight, None if by_w is None else by_w * weight, None, None, None
