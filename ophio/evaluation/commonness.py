"""How common folds are among structures: which are alike, by TM-score."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from ophio.metrics.alignment import likely_alike, tm_scores

ALIKE, SCREEN = 0.6, 0.5  # TM-score by the longer of two; as estimated, from which on they are aligned: misses 1 in 400
PAIRS = 8192  # compared between two reports of progress
REFERENCES = 400  # structures that neighbours are counted among


def alike(
    traces: Sequence[Float[Tensor, "_ 3"]], pairs: Int[Tensor, "p 2"], progress: bool = False
) -> Int[Tensor, "kept 2"]:
    """The `pairs` of CA traces (Å) with a TM-score by the longer above 0.6.

    Pairs whose estimated TM-score is below 0.5 are not aligned.
    """
    lengths = torch.tensor([len(trace) for trace in traces])[pairs]
    pairs = pairs[lengths.amin(-1) > ALIKE * lengths.amax(-1)]
    kept = [pairs[:0]]
    for part in tqdm(pairs.split(PAIRS), "comparing", disable=not progress):
        part = likely_alike(traces, part, SCREEN)
        if len(part):
            kept.append(part[tm_scores(traces, traces, part).amin(-1) > ALIKE])
    return torch.cat(kept)


def commonness(
    traces: Sequence[Float[Tensor, "_ 3"]], seed: int = 0, progress: bool = False
) -> Float[np.ndarray, "traces"]:
    """Logarithm of 1 + how many of up to 400 of the CA traces (Å) are `alike` to each; no trace counts itself."""
    references = torch.randperm(len(traces), generator=torch.Generator().manual_seed(seed))[:REFERENCES]
    pairs = torch.cartesian_prod(torch.arange(len(traces)), references)
    pairs = alike(traces, pairs[pairs[:, 0] != pairs[:, 1]], progress)
    return torch.bincount(pairs[:, 0], minlength=len(traces)).double().log1p().numpy()
