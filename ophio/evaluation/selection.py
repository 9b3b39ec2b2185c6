"""Which samples a model should learn from: those that fold best for their length and content.

A model trained further on its own best samples makes more like them (reward-ranked fine-tuning: Dong et al. 2023,
arXiv:2304.06767). Energies depend on length and content; chosen by energy alone, samples would soon be all alike.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ophio.errors import UserError
from ophio.generation import BANDED, within_bands

FEWEST = 32  # records: fewer cannot tell what is usual for a length and content
WHOLE = 0.99  # valid residues
USED = ("length", "energy", "valid_residues")  # of a record, beside what has a band


def best_samples(
    records: Sequence[Mapping], share: float, bands: Mapping[str, Sequence[float]] | None = None, absolute: float = 0.25
) -> list[str]:
    """Names of samples with the lowest energy a residue for their length, helix and strand content, the best first.

    Args:
        records: of `ophio evaluate` (`--fast` will do).
        share: of all records, how many at most.
        bands: 10, 50 and 90 % quantiles of helix, strand and compactness that samples have to lie within; None: any.
        absolute: how much the energy that is usual for length and content counts, beside how far a sample is below it.

    Raises UserError for a share that is none, fewer than 32 records with energies, or where no sample is good enough.
    """
    if not 0 < share <= 1:
        raise UserError(f"share={share}: give a share above 0, at most 1")
    records = [record for record in records if record.get("energy") is not None]
    if len(records) < FEWEST:
        raise UserError(f"{len(records)} evaluated samples: give {FEWEST} or more to choose among")
    column = {name: np.array([record[name] for record in records], float) for name in (*USED, *BANDED)}
    length, helix, strand, energy = (column[name] for name in ("length", "helix", "strand", "energy"))
    energy, length = energy / length, length / 100
    terms = np.stack([length**0, length, length**2, helix, strand, helix * strand, helix**2, strand**2], axis=-1)
    usual = terms @ np.linalg.lstsq(terms, energy, rcond=None)[0]
    order = np.argsort(energy - (1 - absolute) * usual)
    sound = column["valid_residues"] >= WHOLE
    if bands is not None:
        sound &= np.all(list(within_bands(column, bands).values()), axis=0)
    fit = [records[k]["name"] for k in order[sound[order]]][: round(share * len(records))]
    if not fit:
        raise UserError("none of the samples is valid and within the bands of helix, strand and size")
    return fit
