"""What a folding engine is: sequences in, structures with confidence out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ophio.constants import CA, RESIDUE_LETTERS, C, N
from ophio.errors import UserError
from ophio.protein import Protein

SHORTEST = 10  # residues


@dataclass(frozen=True)
class Fold:
    """A structure predicted for a sequence."""

    protein: Protein  # all atoms, or N, CA, C, O and CB, of one chain; residue types of the sequence
    confidence: Float[Tensor, "L"]  # 0..1, of each residue; what it is differs between engines: see there
    energy: float  # of this structure under the prediction, as `FoldingEngine.energy`; NaN where the engine has none


@runtime_checkable
class FoldingEngine(Protocol):
    """Predicts structures of single sequences.

    Attributes:
        name: as in `load_engine`.
        all_atom: whether folds have side chains.
    """

    name: str
    all_atom: bool

    def fold(self, sequences: Sequence[str], seed: int = 0) -> list[Fold]:
        """A structure for each sequence of one-letter codes. Sequences do not influence each other.

        Raises UserError for letters other than the 20 amino acids and for lengths that the engine does not fold.
        """
        ...

    def energy(self, sequences: Sequence[str], proteins: Sequence[Protein]) -> list[float]:
        """Energy of given structures, with N, CA and C of all residues, under the prediction for the sequences.

        Lower is better.

        Raises UserError where the engine predicts no distribution of structures, and for what `fold` refuses.
        """
        ...


def check_sequences(sequences: Sequence[str], longest: int, engine: str) -> None:
    """Raises UserError, naming the sequence, for letters that are no amino acids and lengths outside 10..`longest`."""
    for number, sequence in enumerate(sequences, 1):
        shown = f"sequence {number} of {len(sequences)} ({sequence[:20]}{'...' if len(sequence) > 20 else ''})"
        if not sequence:
            raise UserError(f"sequence {number} of {len(sequences)}: empty; give one-letter codes of amino acids")
        odd = sorted(set(sequence) - set(RESIDUE_LETTERS))
        if odd:
            raise UserError(f"{shown}: letters {' '.join(odd)} are none of the 20 amino acids {RESIDUE_LETTERS}")
        if not SHORTEST <= len(sequence) <= longest:
            raise UserError(f"{shown}: {len(sequence)} residues; {engine} folds {SHORTEST} to {longest}")


def check_structures(sequences: Sequence[str], proteins: Sequence[Protein]) -> None:
    """Raises UserError, naming the protein, where its length is not its sequence's, and for missing N, CA or C."""
    for sequence, protein in zip(sequences, proteins, strict=True):
        if len(sequence) != protein.num_residues:
            raise UserError(f"{protein.name}: {protein.num_residues} residues, but its sequence has {len(sequence)}")
        complete = protein.atom_mask[:, [N, CA, C]].all(-1)
        if not complete.all():
            number = int(protein.residue_number[~complete][0])
            raise UserError(f"{protein.name}: residue {number} lacks N, CA or C, which the energy of a structure needs")
