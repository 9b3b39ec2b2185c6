"""The weighted sum of all reconstruction terms."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ophio.autoencoder import Decoded
from ophio.losses.chemistry import Chemistry
from ophio.losses.clash import clash, vdw_radii
from ophio.losses.residue_type import residue_type_cross_entropy
from ophio.losses.vector_map import local_vector_map, sample_atoms, sampled_vector_map
from ophio.protein import Protein
from ophio.residue import swap_pairs

TERMS = ("local_vectors", "vector_map", "residue_type", "bonds", "angles", "torsions", "clash", "kl")


class ReconstructionLoss(nn.Module):
    """Sum over terms of weight x mean over the proteins of a batch.

    Args:
        weights: one for each of TERMS, no more and no fewer.
        num_atoms: atoms drawn per protein for the long-range vector map and clashes.
        radius: pairs farther apart than this (Å) do not enter the vector map.
        delta: length (Å) at which the vector map turns from quadratic to linear.

    Raises ValueError for weights of other names.
    """

    radii: Tensor

    def __init__(self, weights: Mapping[str, float], num_atoms: int = 192, radius: float = 32.0, delta: float = 1.0):
        super().__init__()
        if set(weights) != set(TERMS):
            odd = sorted(set(weights) ^ set(TERMS))
            raise ValueError(f"loss weights must name exactly {', '.join(TERMS)}; not so: {', '.join(odd)}")
        self.weights, self.num_atoms, self.radius, self.delta = dict(weights), num_atoms, radius, delta
        self.chemistry = Chemistry()
        self.register_buffer("radii", vdw_radii(), persistent=False)

    def forward(
        self, decoded: Decoded, kl: Float[Tensor, "batch"], protein: Protein
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The loss, and its unweighted terms. `decoded` must hold atoms of the true residue types; `kl` is in nats."""
        mask = with_partner(protein.atom_mask & protein.residue_mask[..., None], protein.residue_type)
        true = match_pairs(protein.positions * mask[..., None], decoded.positions, protein.residue_type)
        error = (decoded.positions - true) * mask[..., None]
        index, drawn = sample_atoms(mask, self.num_atoms)

        def pick(x: Tensor) -> Tensor:
            return x.flatten(1, 2).gather(1, index[..., None].expand(*index.shape, 3))

        sampled_error, sampled_true = pick(error), pick(true)
        radius = self.radii[protein.residue_type].flatten(1).gather(1, index)
        terms = {
            "local_vectors": local_vector_map(error, mask, self.delta),
            "vector_map": sampled_vector_map(sampled_error, sampled_true, drawn, self.radius, self.delta),
            "residue_type": residue_type_cross_entropy(decoded.logits, protein.residue_type, protein.residue_mask),
            **self.chemistry(decoded.positions, true, mask, protein.residue_type),
            "clash": clash(pick(decoded.positions), sampled_true, radius, index // mask.shape[-1], drawn),
            "kl": kl / protein.residue_mask.sum(-1).clamp(min=1),
        }
        means = {name: terms[name].mean() for name in TERMS}
        return sum((self.weights[name] * means[name] for name in TERMS), kl.new_zeros(())), means


def with_partner(
    mask: Bool[Tensor, "*batch L 14"], residue_type: Int[Tensor, "*batch L"]
) -> Bool[Tensor, "*batch L 14"]:
    """Leaves out one of two interchangeable atoms without the other: which one it is cannot be told."""
    return mask & swap_pairs(mask[..., None], residue_type)[..., 0]


@torch.no_grad()
def match_pairs(
    true: Float[Tensor, "*batch L 14 3"],
    predicted: Float[Tensor, "*batch L 14 3"],
    residue_type: Int[Tensor, "*batch L"],
) -> Float[Tensor, "*batch L 14 3"]:
    """True positions with interchangeable atoms in the order that lies closer to the prediction."""
    swapped = swap_pairs(true, residue_type)
    worse = (true - predicted).square().sum((-1, -2)) > (swapped - predicted).square().sum((-1, -2))
    return torch.where(worse[..., None, None], swapped, true)
