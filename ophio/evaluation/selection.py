"""Which samples a model should learn from: those that would fold best, of folds that are not the commonest.

A model trained further on its own best samples makes more like them (reward-ranked fine-tuning: Dong et al. 2023,
arXiv:2304.06767). Chosen by energy alone, samples would soon be all alike. A model needs thousands of them, so the
energies of some hundreds are measured and those of the others told from them (`foldability`).
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ophio.autoencoder import Autoencoder
from ophio.diffusion import LatentDiffusion
from ophio.errors import UserError
from ophio.evaluation.commonness import commonness
from ophio.foldability import LinearMap, correlation, invariants, length_trend, powers_of
from ophio.generation import BANDED, check_banded, within_bands
from ophio.protein import Protein
from ophio.sampling import report_of

FEWEST = 32  # measured energies: fewer cannot tell those of others
WHOLE = 0.99  # valid residues

Columns = dict[str, np.ndarray]


def judged(
    proteins: Sequence[Protein],
    energies: Sequence[float],
    diffusion: LatentDiffusion,
    autoencoder: Autoencoder,
    seed: int = 0,
) -> tuple[Columns, float]:
    """What is to be known of every sample, and how well the energies of those without one are told.

    Columns: length, valid_residues, helix, strand, compactness (`sampling.report_of`); energy of a residue, as measured
    or else told; commonness of the fold, told for all from the measured ones.

    Args:
        energies: of each sample (`ophio evaluate --fast`); NaN where it was not measured.

    Returns the columns and the correlation of told with measured energies of a residue, by cross-validation.

    Raises UserError for fewer than 32 measured energies.
    """
    lengths = np.array([protein.num_residues for protein in proteins])
    energy = np.array(energies, dtype=float) / lengths
    measured = ~np.isnan(energy)
    if measured.sum() < FEWEST:
        raise UserError(f"{measured.sum()} evaluated samples: give {FEWEST} or more to choose by")
    reports = [report_of(protein) for protein in proteins]
    seen = invariants(diffusion, autoencoder, proteins)
    known, target = seen[measured], energy[measured]
    common = commonness([protein.ca for protein, ok in zip(proteins, measured, strict=True) if ok], seed)
    energy[~measured] = LinearMap.fit(known, target)(seen[~measured])
    columns = {name: np.array([report[name] for report in reports]) for name in ("valid_residues", *BANDED)}
    told = {"length": lengths, "energy": energy, "commonness": LinearMap.fit(known, common)(seen)}
    return columns | told, correlation(known, target)


def best_samples(
    columns: Mapping[str, np.ndarray],
    share: float,
    bands: Mapping[str, Sequence[float]],
    banded: Collection[str] = ("compactness",),
    weight: float = 0.3,
) -> list[int]:
    """Which samples have the lowest energy + `weight` * commonness for their length, the best first.

    Args:
        columns: of `judged`.
        share: of all samples, how many at most.
        bands: 10, 50 and 90 % quantiles of helix, strand and compactness.
        banded: in which of these bands a sample has to lie.
        weight: of commonness, in energy of a residue.

    Raises UserError for a share that is none, a band that is none, or where no sample is good enough.
    """
    if not 0 < share <= 1:
        raise UserError(f"share={share}: give a share above 0, at most 1")
    check_banded(banded)
    score = columns["energy"] + weight * columns["commonness"]
    order = np.argsort(score - powers_of(columns["length"]) @ length_trend(columns["length"], score))
    inside = within_bands(columns, bands)
    sound = np.all([columns["valid_residues"] >= WHOLE, *(inside[name] for name in banded)], axis=0)
    chosen = order[sound[order]][: round(share * len(order))]
    if not len(chosen):
        raise UserError("none of the samples is valid and within the bands")
    return chosen.tolist()
