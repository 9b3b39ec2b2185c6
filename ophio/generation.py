"""What a set of generated proteins is like, against the data that the model learnt from."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool
from tqdm import tqdm

from ophio.autoencoder import Autoencoder
from ophio.data.corpus import Corpus
from ophio.errors import UserError
from ophio.protein import stack
from ophio.sampling import report_of

VALID = 0.95  # residues of a sample whose backbone geometry must be valid
STRANDED = 0.2  # content from which on a chain counts as one with strand
COPY = 0.9  # TM-score from which on a sample counts as a copy
BANDED = ("helix", "strand", "compactness")


def generation_row(records: Sequence[Mapping], bands: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """One row of a table, from `sampling.report_of` of every sample (those that failed hold no values).

    `bands`: 10, 50 and 90 % quantiles of helix and strand content and compactness in the training data; a sample is
    within a band from the 10 % to the 90 % quantile, bounds included. Shares are of all samples, failed ones too.
    """
    made = [record for record in records if "failed" not in record]
    column = {key: np.array([r[key] for r in made]) for key in made[0] if isinstance(made[0][key], (int, float))}
    inside = within_bands(column, bands)
    residues = column["length"].sum()

    def share(passed: np.ndarray) -> float:
        return float(passed.sum() / len(records))

    return {
        "samples": len(records),
        "failed": len(records) - len(made),
        "redrawn": int(sum(record["attempts"] - 1 for record in records)),
        "valid_samples": share(column["valid_residues"] >= VALID),
        "valid_residues": float((column["valid_residues"] * column["length"]).sum() / residues),
        "chain_breaks_per_link": float(column["chain_breaks"].sum() / (residues - len(made))),
        "left_handed_helices": int(column["left_handed_helices"].sum()),
        "clashes_per_100_residues": float((column["clashes_per_100_residues"] * column["length"]).sum() / residues),
        "ca_clashes_per_100_residues": float(100 * column["ca_clashes"].sum() / residues),
        "rama_outliers": float(np.nanmean(column["rama_outliers"])),
        "helix": float(column["helix"].mean()),
        "strand": float(column["strand"].mean()),
        "with_strand": share(column["strand"] >= STRANDED),
        **{f"{key}_in_band": share(inside[key]) for key in BANDED},
        "all_in_band": share(np.all(list(inside.values()), axis=0)),
        "seconds": float(column["seconds"].mean()),
    }


def within_bands(
    column: Mapping[str, np.ndarray], bands: Mapping[str, Sequence[float]]
) -> dict[str, Bool[np.ndarray, "samples"]]:
    """Which samples have helix, strand and compactness from the 10 % to the 90 % quantile, bounds included."""
    return {key: (column[key] >= bands[key][0]) & (column[key] <= bands[key][2]) for key in BANDED}


def check_banded(names: Collection[str]) -> None:
    """Raises UserError for a name that is not one of `BANDED`."""
    if unknown := set(names) - set(BANDED):
        raise UserError(f"banded: no {', '.join(sorted(unknown))}; there are {', '.join(BANDED)}")


@torch.no_grad()
def native_records(
    corpus: Corpus, autoencoder: Autoencoder | None = None, batch_size: int = 16
) -> list[dict[str, float]]:
    """The same reports of the chains of a corpus, as they are or as an autoencoder gives them back.

    They are the ceiling of what the decoder can make, and the data itself.
    """
    order = np.argsort(corpus.lengths)
    records = []
    for start in tqdm(range(0, len(order), batch_size), unit="batch", disable=None, leave=False):
        chains = [corpus[int(k)] for k in order[start : start + batch_size]]
        if autoencoder is not None:
            decoded = autoencoder.decode(autoencoder.encode(stack(chains)))
            chains = decoded.unstack([chain.num_residues for chain in chains])
        extra = {"attempts": 1, "seconds": float("nan")}
        records += [report_of(chain) | extra | {"length": chain.num_residues} for chain in chains]
    return records


def novelty_columns(scores: np.ndarray) -> dict[str, float]:
    """Of each sample's highest TM-score to a training structure, normalised by the sample's length."""
    return {"max_tm_median": float(np.median(scores)), "copies": float((scores > COPY).mean())}
