"""The atoms of protein chains, as tensors: one chain, or a padded batch of them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio.constants import CA, CB, NUM_SLOTS, RESIDUE_LETTERS, TYPE_OF, UNKNOWN

NO_INSERTION = ord(" ")


@dataclass(frozen=True)
class Protein:
    """Heavy atoms of a chain of L residues in atom14 order (`ophio.constants.ATOM14`).

    Every tensor may carry leading batch dimensions: `stack` makes a batch, `unstack` takes it apart. Missing atoms have
    `atom_mask` False and position 0; padded residues have no atoms and the type `UNKNOWN`.
    """

    positions: Float[Tensor, "*batch L 14 3"]  # Å
    atom_mask: Bool[Tensor, "*batch L 14"]
    residue_type: Int[Tensor, "*batch L"]  # index into RESIDUE_LETTERS
    residue_number: Int[Tensor, "*batch L"]  # as in the file
    insertion_code: Int[Tensor, "*batch L"]  # code point; 32 (a space) for none
    b_factor: Float[Tensor, "*batch L 14"]  # Å²; of predicted structures often a confidence, 0-100
    chain_id: str = "A"
    name: str = "protein"

    @classmethod
    def from_atoms(
        cls,
        positions: Float[Tensor, "*batch L 14 3"],
        atom_mask: Bool[Tensor, "*batch L 14"],
        residue_type: Int[Tensor, "*batch L"],
        name: str = "protein",
    ) -> "Protein":
        """Residues numbered from 1, no insertion codes, B-factors 0."""
        numbers = torch.arange(1, residue_type.shape[-1] + 1, device=residue_type.device).expand(residue_type.shape)
        codes = torch.full_like(residue_type, NO_INSERTION)
        return cls(positions, atom_mask, residue_type, numbers, codes, positions.new_zeros(atom_mask.shape), name=name)

    @property
    def residue_mask(self) -> Bool[Tensor, "*batch L"]:
        """True where the residue has a CA atom: only those can enter a model."""
        return self.atom_mask[..., CA] & (self.residue_type != UNKNOWN)

    @property
    def num_residues(self) -> int:
        """L, masked residues included."""
        return self.residue_type.shape[-1]

    @property
    def ca(self) -> Float[Tensor, "*batch L 3"]:
        """Positions of the CA atoms, Å; 0 where there is none."""
        return self.positions[..., CA, :]

    @property
    def sequence(self) -> str:
        """One-letter sequence of one chain; X for masked residues."""
        letters = RESIDUE_LETTERS + "X"
        return "".join(letters[index] for index in self.residue_type.tolist())

    def replace(self, **changes) -> "Protein":
        """The same with other fields. Raises TypeError for a name that is none of them."""
        return replace(self, **changes)

    def map(self, function) -> "Protein":
        """Applies `function` to every tensor."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("chain_id", "name")}
        return replace(self, **{key: function(value) for key, value in tensors.items()})

    def to(self, *args, **kwargs) -> "Protein":
        """Device or floating dtype, as `Tensor.to`; integers and masks keep their dtype."""
        device_only = {"device": torch.empty(0).to(*args, **kwargs).device}
        return self.map(lambda t: t.to(*args, **kwargs) if t.is_floating_point() else t.to(**device_only))

    def crop(self, start: int, stop: int) -> "Protein":
        """Residues start..stop-1 of every chain."""
        batch = self.residue_type.dim() - 1
        return self.map(lambda t: t.narrow(batch, start, min(stop, self.num_residues) - start))

    def pad(self, num_residues: int) -> "Protein":
        """Appends masked residues up to `num_residues`. Raises ValueError where there are more already."""
        missing = num_residues - self.num_residues
        if missing < 0:
            raise ValueError(f"cannot pad {self.num_residues} residues to {num_residues}: crop first")
        if missing == 0:
            return self
        batch = self.residue_type.dim() - 1
        fill = {"residue_type": UNKNOWN, "insertion_code": NO_INSERTION}

        def padded(name: str) -> Tensor:
            tensor = getattr(self, name)
            shape = (*tensor.shape[:batch], missing, *tensor.shape[batch + 1 :])
            return torch.cat([tensor, tensor.new_full(shape, fill.get(name, 0))], dim=batch)

        return replace(self, **{f.name: padded(f.name) for f in fields(self) if f.name not in ("chain_id", "name")})

    def backbone(self) -> "Protein":
        """The chain as poly-glycine: N, CA, C and O alone, every unmasked residue a glycine."""
        kept = torch.arange(NUM_SLOTS, device=self.atom_mask.device) < CB
        residue_type = self.residue_type.masked_fill(self.residue_type != UNKNOWN, TYPE_OF["GLY"])
        bare = replace(self, atom_mask=self.atom_mask & kept, residue_type=residue_type)
        return bare.with_positions(self.positions)

    def center(self) -> "Protein":
        """Moves the mean CA of the unmasked residues to the origin."""
        mask = self.residue_mask[..., None]
        mean = (self.ca * mask).sum(-2, keepdim=True) / mask.sum(-2, keepdim=True).clamp(min=1)
        return self.with_positions(self.positions - mean[..., None, :])

    def rotate(self, rotation: Float[Tensor, "*batch 3 3"]) -> "Protein":
        """Applies x -> R x to every atom."""
        return self.with_positions(torch.einsum("...ij,...laj->...lai", rotation, self.positions))

    def with_positions(self, positions: Float[Tensor, "*batch L 14 3"]) -> "Protein":
        """New coordinates; missing atoms stay at 0."""
        return replace(self, positions=positions * self.atom_mask[..., None])

    def unstack(self, lengths: Sequence[int] | None = None) -> list["Protein"]:
        """The chains of a batch, each cut to its length (default: to its last unmasked residue)."""
        chains = [self.map(lambda t, k=k: t[k]) for k in range(self.residue_type.shape[0])]
        if lengths is None:
            lengths = [int(chain.residue_mask.nonzero().max()) + 1 for chain in chains]
        return [chain.crop(0, length) for chain, length in zip(chains, lengths, strict=True)]


def stack(proteins: Sequence[Protein], num_residues: int | None = None) -> Protein:
    """A padded batch [B, L, ...] of single chains; L is the longest, or `num_residues`.

    Raises ValueError for a chain longer than that. Names and chain ids are not kept.
    """
    longest = num_residues or max(protein.num_residues for protein in proteins)
    padded = [protein.pad(longest) for protein in proteins]
    tensors = [f.name for f in fields(Protein) if f.name not in ("chain_id", "name")]
    stacked: dict[str, Any] = {name: torch.stack([getattr(p, name) for p in padded]) for name in tensors}
    return Protein(**stacked, name="batch")


def empty(num_residues: int) -> Protein:
    """A chain of masked residues, to be filled."""
    shape = (num_residues, NUM_SLOTS)
    return Protein.from_atoms(
        torch.zeros(*shape, 3), torch.zeros(shape, dtype=torch.bool), torch.full((num_residues,), UNKNOWN)
    )
