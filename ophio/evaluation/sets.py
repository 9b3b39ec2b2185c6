"""Scores of a set of samples: how many are designable, how diverse and how new they are.

Every function takes one entry a sample. One that failed has no value (None or NaN) and no structure (None), yet it
counts in the denominator of every share. Results are flat dictionaries, to be merged into the row of a table.
"""

from collections.abc import Callable, Sequence, Sized

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio.errors import UserError
from ophio.generation import COPY
from ophio.metrics.alignment import likely_alike, tm_scores
from ophio.metrics.novelty import cluster
from ophio.reconstruction import bootstrap_interval

DESIGNABLE = 2.0  # Å scRMSD, below
FOLDED = 0.5  # scTM, above
CLUSTER_AT = (0.5, 0.6)  # TM-score
MAX_PAIRS = 20_000  # for a mean TM-score
SCREEN = 0.35  # estimated TM-score from which on pairs are aligned to look for links

Values = Sequence[float | int | None] | np.ndarray
Row = dict[str, float | int]


def is_designable(scrmsd: Values) -> Bool[np.ndarray, "samples"]:
    """scRMSD below 2 Å; failed samples are not."""
    return _array(scrmsd) < DESIGNABLE


def designability(scrmsd: Values, sctm: Values, seed: int = 0) -> Row:
    """Shares of all samples with an scRMSD (Å) below 2 and with an scTM above 0.5, with 95 % intervals, and medians.

    The intervals (`_low`, `_high`) are percentiles over samples drawn again. In the medians failed samples count as the
    worst: infinite scRMSD, scTM 0. `scored` samples have both values.

    Raises UserError without samples.
    """
    scrmsd, sctm = _array(scrmsd), _array(sctm)
    _check_alike(scrmsd=scrmsd, sctm=sctm)
    if not len(scrmsd):
        raise UserError("no samples to score: give at least one, failed ones included")
    return {
        "samples": len(scrmsd),
        "scored": int((~np.isnan(scrmsd) & ~np.isnan(sctm)).sum()),
        **_with_interval("designable", scrmsd < DESIGNABLE, seed),
        **_with_interval("sctm_above_0.5", sctm > FOLDED, seed),
        "scrmsd_median": float(np.median(np.where(np.isnan(scrmsd), np.inf, scrmsd))),
        "sctm_median": float(np.median(np.nan_to_num(sctm, nan=0.0))),
    }


def diversity(
    structures: Sequence[Float[Tensor, "_ 3"] | None],
    designable: Bool[np.ndarray, "samples"],
    max_pairs: int = MAX_PAIRS,
    seed: int = 0,
) -> Row:
    """Both conventions, over all samples and over designable ones (`_designable`), from CA traces (Å).

    `mean_tm` (lower is more diverse): mean TM-score of pairs and of both normalisations, over `pairs` of them, all or
    `max_pairs` drawn with `seed`. `clusters_50`, `clusters_60` (higher is more diverse): single-linkage clusters at a
    TM-score of 0.5 or 0.6 in both normalisations, divided by the number of samples, failed ones included. Of more pairs
    than `max_pairs`, only those whose estimated score reaches 0.35 are aligned to find links.

    NaN where there is no pair, or no designable sample.
    """
    designable = np.asarray(designable, dtype=bool)
    _check_alike(structures=structures, designable=designable)
    present = np.array([structure is not None for structure in structures], dtype=bool)
    traces = [structure for structure in structures if structure is not None]
    groups = [torch.arange(len(traces)), torch.from_numpy(designable[present]).nonzero().flatten()]
    drawn = [_some_pairs(members, max_pairs, seed) for members in groups]
    matrix = _tm_matrix(traces, torch.cat(drawn), complete=len(torch.combinations(groups[0])) <= max_pairs)
    of_all = _diversity(matrix, groups[0], drawn[0], len(structures))
    of_designable = _diversity(matrix, groups[1], drawn[1], int(designable.sum()))
    return of_all | {f"{key}_designable": value for key, value in of_designable.items()}


def novelty(max_tm: Values, designable: Bool[np.ndarray, "samples"]) -> Row:
    """From the highest TM-score of each sample to any reference (`ophio.metrics.novelty.max_tm`); lower is newer.

    Its mean over designable samples, its median over the `compared` samples that have one, and `copies`: the share of
    all samples where it is above 0.9. NaN where there is none to average.
    """
    scores, designable = _array(max_tm), np.asarray(designable, dtype=bool)
    _check_alike(max_tm=scores, designable=designable)
    known = ~np.isnan(scores)
    return {
        "compared": int(known.sum()),
        "max_tm_designable": _of_any(np.mean, scores[known & designable]),
        "max_tm_median": _of_any(np.median, scores[known]),
        "copies": _of_any(np.mean, scores > COPY),
    }


def _array(values: Values) -> Float[np.ndarray, "samples"]:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _check_alike(**columns: Sized) -> None:
    if len(set(map(len, columns.values()))) > 1:
        sizes = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise ValueError(f"expected one entry a sample, got {sizes}")


def _with_interval(name: str, passed: Bool[np.ndarray, "samples"], seed: int) -> Row:
    low, high = bootstrap_interval(passed.astype(float), seed=seed)
    return {name: float(passed.mean()), f"{name}_low": low, f"{name}_high": high}


def _of_any(statistic: Callable[[np.ndarray], float], values: np.ndarray) -> float:
    return float(statistic(values)) if len(values) else float("nan")


# Pairs


def _diversity(
    matrix: Float[Tensor, "s s"], members: Int[Tensor, "members"], pairs: Int[Tensor, "p 2"], samples: int
) -> Row:
    i, j = pairs.T
    row = {"mean_tm": float(torch.cat([matrix[i, j], matrix[j, i]]).mean()), "pairs": len(pairs)}
    for threshold in CLUSTER_AT:
        clusters = len(cluster(matrix[members][:, members], threshold).unique())
        row[f"clusters_{100 * threshold:.0f}"] = clusters / samples if samples else float("nan")
    return row


def _some_pairs(members: Int[Tensor, "members"], limit: int, seed: int) -> Int[Tensor, "p 2"]:
    """All pairs of members, or `limit` of them drawn at random."""
    pairs = torch.combinations(members)
    if len(pairs) > limit:
        pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:limit]]
    return pairs


def _tm_matrix(traces: Sequence[Tensor], wanted: Int[Tensor, "p 2"], complete: bool) -> Float[Tensor, "s s"]:
    """Entry i, j: TM-score normalised by trace i. NaN where the pair is neither wanted nor likely to be alike."""
    matrix = torch.full((len(traces), len(traces)), torch.nan)
    matrix.fill_diagonal_(1.0)
    if not complete:
        wanted = torch.cat([wanted, likely_alike(traces, torch.combinations(torch.arange(len(traces))), SCREEN)])
    if len(wanted):
        wanted = wanted.unique(dim=0)
        i, j = wanted.T
        matrix[i, j], matrix[j, i] = tm_scores(traces, traces, wanted).unbind(-1)
    return matrix
