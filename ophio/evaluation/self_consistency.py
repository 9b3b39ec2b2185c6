"""Self-consistency of one backbone: design sequences for it, fold them, and see whether they come back to it.

As in Trippe et al. 2022 (arXiv:2206.04119): ProteinMPNN proposes sequences, a folding engine predicts the structure of
each, and the closest prediction counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ophio import geometry
from ophio.constants import CA, CB
from ophio.errors import UserError
from ophio.evaluation.folding import Fold, FoldingEngine
from ophio.evaluation.inverse_folding import Designed, ProteinMPNN
from ophio.metrics import all_atom_rmsd, ca_rmsd, tm_score
from ophio.metrics.atoms import match_names
from ophio.protein import Protein

DIGITS = 4


@dataclass(frozen=True)
class Protocol:
    """What the scores of a backbone depend on.

    Args:
        sequences: that ProteinMPNN designs.
        temperature: of ProteinMPNN.
        mpnn_weights: "vanilla" or "soluble".
        engine, engine_weights, networks, starts: that folds, see `ophio.evaluation.folding.load_engine`; None for its
            own choice.
        fast: no folding, only the energy of the backbone under the predicted distogram of each sequence.
        seed: of ProteinMPNN and of the folding engine.

    Raises UserError for values without a meaning.
    """

    sequences: int = 8
    temperature: float = 0.1
    mpnn_weights: str = "vanilla"
    engine: str = "trrosetta"
    engine_weights: str | None = None
    networks: int | None = None
    starts: int | None = None
    fast: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise UserError(f"sequences {self.sequences}: give at least 1")
        if not 0 <= self.temperature <= 2:
            raise UserError(f"temperature {self.temperature}: give a number from 0 to 2")


def self_consistency(
    protein: Protein, designer: ProteinMPNN, engine: FoldingEngine, protocol: Protocol
) -> dict[str, float | str | list]:
    """Scores of a chain whose residues all have N, CA, C and O; a flat record, lists with an entry a designed sequence.

    Å: `scrmsd` (lowest CA RMSD after superposition), `scrmsd_mean_distance` (lowest mean distance of CA atoms after the
    same superposition: never above the RMSD). 0..1: `sctm` (highest TM-score, residue by residue, normalised by the
    length of the chain), `confidence` (mean over residues, of the fold with the lowest RMSD) and `residue_confidence`.
    `energy` is that of the backbone itself under the engine's prediction for the sequence of that fold (lowest of all
    in the fast mode, which folds nothing). `mpnn_score` (negative log-likelihood a residue; lower is better) is also of
    that sequence.

    A chain with a sequence of its own (see `own_sequence`) gets `recovery`, the mean over the designed sequences, and
    the same scores of its own sequence: `codesign_rmsd`, `codesign_tm`, `codesign_confidence`, `codesign_energy`,
    `codesign_mpnn_score`, and where both the engine and the chain have side chains `codesign_all_atom_rmsd`.
    """
    designs = designer.design([protein], protocol.sequences, protocol.temperature, seeds=[protocol.seed])[0]
    own = own_sequence(protein)
    record: dict[str, float | str | list] = {
        "sequences": [design.sequence for design in designs],
        "mpnn_scores": [round(design.score, DIGITS) for design in designs],
    }
    if own is not None:
        record |= {"own_sequence": own, "codesign_mpnn_score": round(designer.score([protein])[0], DIGITS)}
        record["recovery"] = round(sum(design.recovery for design in designs) / len(designs), DIGITS)
    judge = _energies if protocol.fast else _folds
    return record | judge(protein, designs, own, engine, protocol.seed)


def own_sequence(protein: Protein) -> str | None:
    """The sequence that came with a chain; None where there is none: a residue is unknown, or all are of one type."""
    types = set(protein.residue_type.tolist())
    return protein.sequence if protein.residue_mask.all() and len(types) > 1 else None


def _energies(protein: Protein, designs: Sequence[Designed], own: str | None, engine: FoldingEngine, seed: int) -> dict:
    sequences = [design.sequence for design in designs] + ([own] if own else [])
    energies = [round(energy, DIGITS) for energy in engine.energy(sequences, [protein] * len(sequences))]
    best = min(range(len(designs)), key=energies.__getitem__)
    values = {"energies": energies[: len(designs)], "energy": energies[best]}
    values["mpnn_score"] = round(designs[best].score, DIGITS)
    return values | ({"codesign_energy": energies[-1]} if own else {})


def _folds(protein: Protein, designs: Sequence[Designed], own: str | None, engine: FoldingEngine, seed: int) -> dict:
    sequences = [design.sequence for design in designs] + ([own] if own else [])
    folds = engine.fold(sequences, seed)
    scores = [compare(fold, protein) for fold in folds]
    designed = scores[: len(designs)]
    best = min(range(len(designs)), key=lambda k: designed[k]["rmsd"])
    chosen = [sequences[best]] + ([own] if own else [])
    energies = [round(energy, DIGITS) for energy in engine.energy(chosen, [protein] * len(chosen))]
    values = {
        "rmsds": [score["rmsd"] for score in designed],
        "tms": [score["tm"] for score in designed],
        "confidences": [score["confidence"] for score in designed],
        "scrmsd": designed[best]["rmsd"],
        "scrmsd_mean_distance": min(score["mean_distance"] for score in designed),
        "sctm": max(score["tm"] for score in designed),
        "confidence": designed[best]["confidence"],
        "residue_confidence": [round(value, 3) for value in folds[best].confidence.tolist()],
        "mpnn_score": round(designs[best].score, DIGITS),
        "energy": energies[0],
    }
    if own is not None:
        values |= {f"codesign_{key}": scores[-1][key] for key in ("rmsd", "tm", "confidence")}
        values["codesign_energy"] = energies[-1]
        if engine.all_atom and protein.atom_mask[:, CB + 1 :].any():
            values["codesign_all_atom_rmsd"] = round(_all_atom_rmsd(folds[-1].protein, protein), DIGITS)
    return values


@torch.no_grad()
def compare(fold: Fold, protein: Protein) -> dict[str, float]:
    """CA RMSD and mean CA distance (Å), TM-score, mean confidence of a fold and the chain it should be.

    Raises UserError where the fold is not finite.
    """
    predicted, true = fold.protein.positions, protein.positions
    if not predicted.isfinite().all():
        raise UserError("the folding engine gave coordinates that are not finite numbers")
    mask = fold.protein.atom_mask & protein.atom_mask
    moved = geometry.superimpose(predicted[:, CA], true[:, CA])
    values = {
        "rmsd": ca_rmsd(predicted, true, mask),
        "mean_distance": (moved - true[:, CA]).norm(dim=-1).mean(),
        "tm": tm_score(predicted, true, mask),
        "confidence": fold.confidence.mean(),
    }
    return {key: round(float(value), DIGITS) for key, value in values.items()}


def _all_atom_rmsd(predicted: Protein, true: Protein) -> float:
    positions, shared = match_names(predicted, true)
    return float(all_atom_rmsd(positions, true.positions, shared, true.residue_type))
