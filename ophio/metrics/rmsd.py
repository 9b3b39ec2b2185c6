"""Root-mean-square deviation of two structures of the same chain, Å, one value per protein.

`atom_mask` marks the atoms compared (those present in both structures). A protein without any gets NaN. Gradients flow
through the superposed positions, and are finite for identical structures.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio import geometry
from ophio.constants import CA, C, N, O
from ophio.metrics.atoms import swappable
from ophio.residue import pair_mask, swap_pairs

SWAP_ROUNDS = 3  # superpose, choose the order of interchangeable atoms, repeat: settles in one or two rounds


def rmsd(
    predicted: Float[Tensor, "*batch n 3"],
    true: Float[Tensor, "*batch n 3"],
    mask: Bool[Tensor, "*batch n"],
    superimpose: bool = True,
) -> Float[Tensor, "*batch"]:
    """RMSD over the masked points, after Kabsch superposition of them or in place."""
    if superimpose:
        predicted = geometry.superimpose(predicted, true, mask)
    squared = (predicted - true).square().sum(-1) * mask
    mean = squared.sum(-1) / mask.sum(-1)
    return mean.clamp(min=geometry.MIN_LENGTH**2).sqrt()


def ca_rmsd(
    predicted: Float[Tensor, "*batch L 14 3"],
    true: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    superimpose: bool = True,
) -> Float[Tensor, "*batch"]:
    """RMSD of the CA atoms, superposed on them."""
    return rmsd(predicted[..., CA, :], true[..., CA, :], atom_mask[..., CA], superimpose)


def backbone_rmsd(
    predicted: Float[Tensor, "*batch L 14 3"],
    true: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    superimpose: bool = True,
) -> Float[Tensor, "*batch"]:
    """RMSD of N, CA, C and O, superposed on them."""
    backbone = [N, CA, C, O]
    return rmsd(
        rearrange(predicted[..., backbone, :], "... l a xyz -> ... (l a) xyz"),
        rearrange(true[..., backbone, :], "... l a xyz -> ... (l a) xyz"),
        rearrange(atom_mask[..., backbone], "... l a -> ... (l a)"),
        superimpose,
    )


def all_atom_rmsd(
    predicted: Float[Tensor, "*batch L 14 3"],
    true: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    residue_type: Int[Tensor, "*batch L"],
    superimpose: bool = True,
) -> Float[Tensor, "*batch"]:
    """RMSD of all heavy atoms, superposed on them, with interchangeable atoms in their better order.

    `residue_type` is that of the true structure. The names of interchangeable atoms (OD1 and OD2, both pairs of a ring
    together) carry no meaning, so swapping them in either structure leaves the value as it is.
    """
    ordered = best_order(predicted, true, atom_mask, residue_type, superimpose)
    atoms = "... l a xyz -> ... (l a) xyz"
    return rmsd(
        rearrange(ordered, atoms), rearrange(true, atoms), rearrange(atom_mask, "... l a -> ... (l a)"), superimpose
    )


def best_order(
    predicted: Float[Tensor, "*batch L 14 3"],
    true: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    residue_type: Int[Tensor, "*batch L"],
    superimpose: bool = True,
) -> Float[Tensor, "*batch L 14 3"]:
    """`predicted`, where it stands, with interchangeable atoms swapped wherever that brings them closer to `true`.

    The first superposition leaves those atoms out, so the outcome does not depend on the order they came in.
    """
    swapped = swap_pairs(predicted, residue_type)
    may_swap = swappable(atom_mask, residue_type)
    ordered, weight = predicted, atom_mask & ~pair_mask(residue_type)
    for _ in range(SWAP_ROUNDS if superimpose else 1):
        here, there = predicted, swapped
        if superimpose:
            rotation, translation = geometry.kabsch(*_flat(ordered, true), rearrange(weight, "... l a -> ... (l a)"))
            here, there = (_moved(x, rotation, translation) for x in (predicted, swapped))
        closer = _squared_distance(there, true, atom_mask) < _squared_distance(here, true, atom_mask)
        ordered = torch.where((closer & may_swap)[..., None, None], swapped, predicted)
        weight = atom_mask
    return ordered


def _flat(*positions: Tensor) -> list[Tensor]:
    return [rearrange(x, "... l a xyz -> ... (l a) xyz") for x in positions]


def _moved(positions: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    return geometry.transform(positions, rotation[..., None, :, :], translation[..., None, :])


def _squared_distance(a: Tensor, b: Tensor, atom_mask: Tensor) -> Tensor:
    return ((a - b).square().sum(-1) * atom_mask).sum(-1)
