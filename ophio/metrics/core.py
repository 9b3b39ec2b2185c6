"""The superposition of two conformations of one chain on what moves least between them."""

from typing import NamedTuple

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor

from ophio.geometry import kabsch, transform
from ophio.metrics.similarity import tm_distance_scale

PIECES = (1, 2, 4, 8)  # the search starts from the whole chain, its halves, quarters and eighths
ROUNDS = 20
SHORTEST = 3  # residues


class Core(NamedTuple):
    """R x + t of the mobile chain, and the TM-score under it (residue i on residue i, by the residues compared)."""

    tm_score: Float[Tensor, "*batch"]
    rotation: Float[Tensor, "*batch 3 3"]
    translation: Float[Tensor, "*batch 3"]


@torch.no_grad()
def core_superposition(
    mobile: Float[Tensor, "*#batch n 3"], target: Float[Tensor, "*#batch n 3"], mask: Bool[Tensor, "n"]
) -> Core:
    """Superposes CA traces (Å) so that the TM-score is high: on the largest rigid part, where domains move.

    Each round weights residues by their squared TM term, 1 / (1 + (d / d0)^2), and superposes them anew, which never
    lowers the sum of the terms. That is linear in the length, and so fit for every frame of a path; the search of
    `metrics.similarity` looks at more starts and may score a little higher. Below three residues the score is NaN.
    """
    x, y = torch.broadcast_tensors(mobile[..., mask, :], target[..., mask, :])
    length = x.shape[-2]
    starts = _pieces(length).to(x)
    x, y = (repeat(points, "... n xyz -> ... s n xyz", s=len(starts)) for points in (x, y))
    squared_scale = tm_distance_scale(length) ** 2
    weight = starts.expand(x.shape[:-1])
    for _ in range(ROUNDS):
        rotation, translation = kabsch(x, y, weight)
        term = 1 / (1 + (transform(x, rotation, translation) - y).square().sum(-1) / squared_scale)
        weight = term.square()
    score = term.mean(-1) if length >= SHORTEST else torch.full_like(term[..., 0], torch.nan)
    best = score.nan_to_num(0.0).argmax(-1, keepdim=True)
    at = best[..., None]
    return Core(
        score.gather(-1, best)[..., 0],
        rotation.gather(-3, at[..., None].expand(*best.shape, 3, 3))[..., 0, :, :],
        translation.gather(-2, at.expand(*best.shape, 3))[..., 0, :],
    )


def _pieces(length: int) -> Bool[Tensor, "s n"]:
    index = torch.arange(length)
    pieces = [(index * count // length) == k for count in PIECES for k in range(count)]
    return torch.stack([piece for piece in pieces if piece.sum() >= SHORTEST] or pieces[:1])
