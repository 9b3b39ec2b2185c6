"""The structures of a folder that are worth folding: told to fold well for their length, and not all alike.

To design sequences for a structure and to fold them takes some 20 seconds, to sample one less than a tenth of one. So it pays to
sample several times as many as will be evaluated, and to choose among them by what `foldability` tells.
"""

import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ophio.errors import UserError
from ophio.evaluation.commonness import alike
from ophio.evaluation.structures import read_backbone, structure_files
from ophio.files import check_new_folder, whole_folder, write_whole
from ophio.foldability import foldability_of, invariants
from ophio.generation import BANDED, check_banded, within_bands
from ophio.pages import SHOWN, Entry, grid_page
from ophio.pretrained import load_diffusion, read_card
from ophio.protein import Protein
from ophio.sampling import shape_of
from ophio.tables import write_csv

COMPARED = 4  # times as many as are wanted, the best, are compared with one another
DIVERSITY = 0.4  # energy of a residue; times ln(1 + how many alike have been chosen)
TABLE = "selection.csv"


@dataclass(frozen=True)
class Candidate:
    """A structure, its energy told for a residue, how far that is above what is usual for its length, and its
    `sampling.shape_of`."""

    path: Path
    protein: Protein
    energy: float
    beyond_usual: float
    shape: dict[str, float]


def candidates(folder: Path, model: str | Path) -> tuple[list[Candidate], list[str]]:
    """The structures of a folder, judged, and complaints about those that cannot be.

    Raises UserError where there is no structure at all, or nothing comes with the model to judge by.
    """
    judge, card = foldability_of(model), read_card(model)
    shortest, longest = card["lengths"]
    read, complaints = [], []
    for path in structure_files(folder)[0]:
        try:
            protein = read_backbone(path, (1, sys.maxsize))  # the limits are the model's, below
            if not shortest <= protein.num_residues <= longest:
                what = f"{protein.num_residues} residues, {model} was trained on {shortest}-{longest}"
                raise UserError(f"{path}: {what} and cannot judge it")
            read.append((path, protein))
        except UserError as error:
            complaints.append(str(error))
    if not read:
        raise UserError(complaints[0])
    proteins = [protein for _, protein in read]
    lengths = np.array([protein.num_residues for protein in proteins])
    energies = judge.told(invariants(*load_diffusion(model), proteins))
    beyond = judge.beyond_usual(energies, lengths)
    judged = zip(read, energies.tolist(), beyond.tolist(), strict=True)
    return [Candidate(*file, energy, far, shape_of(file[1])) for file, energy, far in judged], complaints


def within(
    judged: Sequence[Candidate], bands: Mapping[str, Sequence[float]], banded: Collection[str]
) -> list[Candidate]:
    """Those whose `banded` (of helix, strand, compactness) lie from the 10 % to the 90 % quantile in `bands`.

    Raises UserError where there are none.
    """
    if not banded:
        return list(judged)
    inside = within_bands({name: np.array([c.shape[name] for c in judged]) for name in BANDED}, bands)
    kept = np.all([inside[name] for name in banded], axis=0)
    if not kept.any():
        raise UserError(f"banded: no structure of {len(judged)} lies within the bands of {', '.join(banded)}")
    return [candidate for candidate, ok in zip(judged, kept, strict=True) if ok]


def shortlist(
    scores: Sequence[float],
    traces: Sequence[Float[Tensor, "_ 3"]],
    num: int,
    diversity: float = DIVERSITY,
    progress: bool = False,
) -> tuple[list[int], list[int]]:
    """The `num` of lowest score, each marked down by `diversity` * ln(1 + how many chosen before it are alike).

    Returns which, in the order of choice, and how many chosen before each are alike (TM-score by the longer above 0.6).
    Only the best 4 * `num` by score are compared. Raises UserError for a number or weight without a meaning.
    """
    check_choice(num, diversity)
    best = np.argsort(scores, kind="stable")[: COMPARED * num]
    compared, score = [traces[k] for k in best], np.asarray(scores, dtype=float)[best]
    count, left = np.zeros(len(best), dtype=int), np.ones(len(best), dtype=bool)
    chosen, before = [], []
    for _ in tqdm(range(min(num, len(best))), "choosing", disable=not progress):
        k = int(np.where(left, score + diversity * np.log1p(count), np.inf).argmin())
        chosen.append(int(best[k]))
        before.append(int(count[k]))
        left[k] = False
        if diversity:
            others = torch.from_numpy(np.flatnonzero(left))
            pairs = torch.stack([torch.full_like(others, k), others], -1).sort(-1).values  # alike whichever is first
            count[alike(compared, pairs).sum(-1) - k] += 1
    return chosen, before


def check_choice(num: int, diversity: float) -> None:
    """Raises UserError for a number of structures or a weight without a meaning."""
    if num < 1:
        raise UserError(f"num {num}: give a number of structures, at least 1")
    if not 0 <= diversity < float("inf"):
        raise UserError(f"diversity {diversity}: give a number, at least 0")


def select(
    folder: Path,
    num: int,
    output: Path,
    model: str | Path = "mini_diffusion",
    diversity: float = DIVERSITY,
    banded: Collection[str] = (),
    viewer_js: str | None = None,
) -> tuple[list[dict], list[str]]:
    """Copies the shortlist of a folder's structures to `output`, with a table and a page, whole or not at all.

    `banded`: of helix, strand and compactness, which have to lie within the band of the model's card.

    Returns the rows of the table, the best first, and complaints about structures that could not be judged. Raises
    UserError where `output` holds something, for a band that is none, or what `candidates`, `within` and `shortlist` do.
    """
    check_new_folder(output)
    check_choice(num, diversity)  # before minutes of judging
    check_banded(banded)
    judged, complaints = candidates(folder, model)
    judged = within(judged, read_card(model)["bands"], banded)
    scores = [candidate.beyond_usual for candidate in judged]
    chosen, before = shortlist(scores, [c.protein.ca for c in judged], num, diversity, progress=True)
    rows = list(_rows([judged[k] for k in chosen], before))
    shown = [Entry(judged[k].protein, row["file"], _caption(row)) for k, row in zip(chosen[:SHOWN], rows, strict=False)]
    page = grid_page(shown, f"{len(rows)} of {len(judged)} structures", total=len(rows), viewer_js=viewer_js)
    with whole_folder(output) as unfinished:
        for k in chosen:
            shutil.copyfile(judged[k].path, unfinished / judged[k].path.name)
        write_csv(rows, unfinished / TABLE)
        write_whole(unfinished / "index.html", page.encode())
    return rows, complaints


def _rows(chosen: Sequence[Candidate], before: Sequence[int]) -> Iterator[dict]:
    for rank, (candidate, count) in enumerate(zip(chosen, before, strict=True), 1):
        yield {
            "rank": rank,
            "file": candidate.path.name,
            "residues": candidate.protein.num_residues,
            "energy_per_residue": round(candidate.energy, 3),
            "beyond_usual": round(candidate.beyond_usual, 3),
            "alike_before": count,
            "helix": round(candidate.shape["helix"], 3),
            "strand": round(candidate.shape["strand"], 3),
        }


def _caption(row: dict) -> str:
    return f"{row['residues']} residues, energy told {row['energy_per_residue']:.2f} a residue"
