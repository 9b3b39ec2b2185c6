"""TM-score and GDT of two structures of the same chain: residue i corresponds to residue i.

Both are maxima over superpositions and have no closed form. The search is that of the TMscore program (Zhang & Skolnick
2004, Proteins 57:702): superpose on every fragment of L, L/2, L/4, L/8, L/16 and 4 residues, then repeatedly on the
residues that came close, until that set no longer changes. As there, GDT takes for every cut-off the superposition that
brings most residues below it. LGA searches harder, so its GDT may be a little higher.
"""

from typing import NamedTuple

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio.constants import CA
from ophio.geometry import kabsch, transform

CUTOFFS = (0.5, 1.0, 2.0, 4.0, 8.0)  # Å; GDT-HA uses the first four, GDT-TS the last four
SHORTEST_FRAGMENT = 4
DIVISORS = (1, 2, 4, 8, 16)
SEARCH_ROUNDS = 20
CHUNK = 2**21  # fragments x residues superposed at once: bounds the memory for long chains


class Similarity(NamedTuple):
    """Scores in 0..1 and the superposition of the best TM-score, R x + t of the predicted structure."""

    tm_score: Float[Tensor, "*batch"]
    gdt_ts: Float[Tensor, "*batch"]
    gdt_ha: Float[Tensor, "*batch"]
    rotation: Float[Tensor, "*batch 3 3"]
    translation: Float[Tensor, "*batch 3"]


def tm_score(
    predicted: Float[Tensor, "*batch L 14 3"],
    true: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    target_length: Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """TM-score of the CA atoms, normalised by the target length (see `similarity`)."""
    return similarity(predicted, true, atom_mask, target_length).tm_score


def gdt_ts(
    predicted: Float[Tensor, "*batch L 14 3"],
    true: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    target_length: Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """GDT-TS, 0..1: mean share of CA atoms within 1, 2, 4 and 8 Å (see `similarity`)."""
    return similarity(predicted, true, atom_mask, target_length).gdt_ts


def gdt_ha(
    predicted: Float[Tensor, "*batch L 14 3"],
    true: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    target_length: Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """GDT-HA, 0..1: mean share of CA atoms within 0.5, 1, 2 and 4 Å (see `similarity`)."""
    return similarity(predicted, true, atom_mask, target_length).gdt_ha


@torch.no_grad()
def similarity(
    predicted: Float[Tensor, "*batch L 14 3"],
    true: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    target_length: Int[Tensor, "*batch"] | None = None,
) -> Similarity:
    """TM-score, GDT-TS and GDT-HA of the CA atoms marked in `atom_mask`, from one search.

    `target_length` is the number of residues of the whole target, by which scores are normalised; default: the number
    of residues compared. One protein is searched at a time, so padding has no influence. Below three residues: NaN.
    Raises ValueError for a batch of none.
    """
    mask = atom_mask[..., CA]
    length = mask.sum(-1) if target_length is None else target_length
    batch, size = mask.shape[:-1], mask.shape[-1]
    chains = zip(
        predicted[..., CA, :].reshape(-1, size, 3),
        true[..., CA, :].reshape(-1, size, 3),
        mask.reshape(-1, size),
        length.reshape(-1).tolist(),
        strict=True,
    )
    found = [_search(x[present], y[present], max(total, 1)) for x, y, present, total in chains]
    if not found:
        raise ValueError(f"no protein to compare: the batch has shape {tuple(batch)}")
    return Similarity(*(torch.stack(values).reshape((*batch, *values[0].shape)) for values in zip(*found, strict=True)))


def tm_distance_scale(length: int) -> float:
    """d0 of the TM-score, Å: the distance at which a residue counts one half."""
    return max(1.24 * max(length - 15, 0) ** (1 / 3) - 1.8, 0.5)


def _search(x: Float[Tensor, "n 3"], y: Float[Tensor, "n 3"], length: int) -> Similarity:
    if len(x) < 3:
        missing = x.new_tensor(torch.nan)
        return Similarity(missing, missing, missing, missing.expand(3, 3), missing.expand(3))
    d0 = tm_distance_scale(length)
    best = [_refine(x, y, chosen, d0) for chosen in _fragments(len(x), x.device).split(max(1, CHUNK // len(x)))]
    scores, counts, rotations, translations = (torch.stack(values) for values in zip(*best, strict=True))
    winner = scores.argmax()
    shares = counts.amax(0).to(x.dtype) / length
    return Similarity(
        scores[winner] / length, shares[1:].mean(), shares[:-1].mean(), rotations[winner], translations[winner]
    )


def _fragments(n: int, device: torch.device) -> Bool[Tensor, "fragments n"]:
    """Masks of every contiguous fragment of n, n/2, n/4, n/8, n/16 and 4 residues."""
    shortest = min(SHORTEST_FRAGMENT, n)
    sizes = {max(n // divisor, shortest) for divisor in DIVISORS} | {shortest}
    index = torch.arange(n, device=device)
    starts = [(size, index[: n - size + 1, None]) for size in sorted(sizes, reverse=True)]
    return torch.cat([(index >= start) & (index < start + size) for size, start in starts])


def _refine(
    x: Float[Tensor, "n 3"], y: Float[Tensor, "n 3"], chosen: Bool[Tensor, "s n"], d0: float
) -> tuple[Float[Tensor, ""], Int[Tensor, "5"], Float[Tensor, "3 3"], Float[Tensor, "3"]]:
    """Highest TM sum with its superposition, and highest counts per cut-off, on the way from sets `chosen`."""
    search_radius = min(max(d0, 4.5), 8.0)
    cutoffs = x.new_tensor(CUTOFFS).square()[:, None, None]
    counts = torch.zeros(len(CUTOFFS), dtype=torch.long, device=x.device)
    best = None
    for k in range(SEARCH_ROUNDS + 1):
        mobile, target = (repeat(points, "n xyz -> s n xyz", s=len(chosen)) for points in (x, y))
        rotation, translation = kabsch(mobile, target, chosen)
        squared = (transform(mobile, rotation, translation) - target).square().sum(-1)
        counts = torch.maximum(counts, (squared < cutoffs).sum(-1).amax(-1))
        score, index = (1 / (1 + squared / d0**2)).sum(-1).max(0)
        if best is None or score > best[0]:
            best = score, rotation[index], translation[index]
        close = _close(squared, search_radius + (1 if k else -1))
        chosen = close[(close != chosen).any(-1)].unique(dim=0)  # sets that moved; equal sets have equal futures
        if not len(chosen):
            break
    return best[0], counts, *best[1:]


def _close(squared: Float[Tensor, "s n"], radius: float) -> Bool[Tensor, "s n"]:
    """Residues within the radius, or within that of the third-closest where fewer than three are."""
    third = squared.kthvalue(3, dim=-1, keepdim=True).values
    return squared <= third.clamp(min=radius**2)
