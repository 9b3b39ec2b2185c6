"""What a network predicts of a pair of residues: distributions of distance and orientation (Yang et al. 2020).

The distance is that of the CB atoms. The orientation is given by three angles: omega, the torsion CA-CB-CB-CA; theta,
the torsion N-CA-CB-CB of the first residue towards the second; phi, the angle CA-CB-CB. Glycines have the CB that an
alanine would have.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

NEAREST, BIN_WIDTH = 2.0, 0.5  # Å
DISTANCE_BINS, TORSION_BINS, ANGLE_BINS = 36, 24, 12
DISTANCES = NEAREST + BIN_WIDTH * (torch.arange(DISTANCE_BINS) + 0.5)  # Å, middles of the bins


@dataclass(frozen=True)
class PairPrediction:
    """Probabilities for every ordered pair of residues. Class 0 of each: CB atoms farther apart than 20 Å."""

    distance: Float[Tensor, "L L 37"]  # 36 bins of 0.5 Å from 2 Å; symmetric
    omega: Float[Tensor, "L L 25"]  # 24 bins of 15 degrees from -180 degrees; symmetric
    theta: Float[Tensor, "L L 25"]  # the same, [i, j] seen from residue i
    phi: Float[Tensor, "L L 13"]  # 12 bins of 15 degrees from 0

    @property
    def num_residues(self) -> int:
        return len(self.distance)

    @classmethod
    def mean(cls, predictions: Sequence["PairPrediction"]) -> "PairPrediction":
        """Mean probabilities of an ensemble."""
        return cls(*(torch.stack([getattr(p, f.name) for p in predictions]).mean(0) for f in fields(cls)))


def expected_lddt(
    prediction: PairPrediction, cb: Float[Tensor, "L 3"], radius: float = 15.0, separation: int = 1
) -> Float[Tensor, "L"]:
    """lDDT (CB atoms) that the prediction expects of a structure, 0..1 for each residue.

    As lDDT: the share of distances below `radius` that are right to 0.5, 1, 2 and 4 Å, on average; here the
    probability of that under the predicted distribution. Residues without such a distance have 0.
    """
    distance = torch.cdist(cb, cb)
    error = (distance[..., None] - DISTANCES.to(cb)).abs()
    within = sum((0.5 * BIN_WIDTH + tolerance - error).div(BIN_WIDTH).clamp(0, 1) for tolerance in (0.5, 1, 2, 4)) / 4
    index = torch.arange(len(cb), device=cb.device)
    near = (distance < radius) & ((index[:, None] - index).abs() >= separation)
    kept = (prediction.distance[..., 1:] * within).sum(-1)
    return (kept * near).sum(-1) / near.sum(-1).clamp(min=1)
