"""The most similar reference of a structure by TM-score, and clusters: how new and how diverse samples are.

Aligning every sample with every reference would take days. An index keeps what each reference looks like from each of
its blocks of four residues; aligning those takes microseconds a pair and is done for all. The best thousand are
superposed as block means (`alignment.coarse_tm`), and the best few of them aligned by residues. A piece of a larger
reference has other surroundings than it had there. So the references whose windows of 32 residues are most like those
of the sample, by distances within the window, are aligned, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from ophio.errors import UserError
from ophio.metrics.alignment import best_sums, check_chains, coarse_tm, environments, in_batches, pad_chains, tm_scores

SHORTLIST = 1024  # references whose block means are superposed
CANDIDATES = 32  # references aligned by residues
GROUP = 512  # references compared at once
WINDOW, POINTS = 32, 8  # residues, and the means of so many blocks of them whose distances are compared
STEP, QUERY_STEP = 2, 4  # residues from one window of a reference, or of a query, to the next
WINDOW_SCALE = 2.0  # Å, RMSD of distances
SHARING = 8  # references with the most similar windows, aligned by residues


class Nearest(NamedTuple):
    """References in falling order of their estimated TM-score with each query."""

    reference: Int[Tensor, "queries k"]
    estimate: Float[Tensor, "queries k"]


class MaxTM(NamedTuple):
    """The highest TM-score of each query, normalised by its length, and the reference that has it."""

    tm_score: Float[Tensor, "queries"]
    reference: Int[Tensor, "queries"]


class _Group(NamedTuple):
    """References of similar lengths."""

    members: Int[Tensor, "references"]
    environments: Float[Tensor, "blocks features references"]


class _Windows(NamedTuple):
    """Of all references, one after another."""

    distances: Float[Tensor, "windows pairs"]  # Å
    reference: Int[Tensor, "windows"]


@dataclass(frozen=True)
class StructureIndex:
    """CA traces to be searched; make one with `StructureIndex.of`. About 8 kB a reference."""

    structures: tuple[Float[Tensor, "_ 3"], ...]
    groups: tuple[_Group, ...]
    windows: _Windows

    @classmethod
    def of(cls, structures: Sequence[Float[Tensor, "_ 3"]]) -> "StructureIndex":
        """Of CA traces (Å). Raises UserError where there is none or one is unfit (see `alignment.check_chains`)."""
        if not len(structures):
            raise UserError("no reference structure to compare with")
        check_chains(structures, "reference")
        order = torch.tensor([len(structure) for structure in structures]).argsort()
        groups = (_Group(members, _environments([structures[i] for i in members])) for members in order.split(GROUP))
        windows = [_window_distances(structure, STEP) for structure in structures]
        reference = torch.arange(len(windows)).repeat_interleave(torch.tensor(list(map(len, windows))))
        return cls(tuple(structures), tuple(groups), _Windows(torch.cat(windows), reference.to(windows[0].device)))

    def __len__(self) -> int:
        return len(self.structures)

    @torch.no_grad()
    def nearest(self, queries: Sequence[Float[Tensor, "_ 3"]], k: int, shortlist: int = SHORTLIST) -> Nearest:
        """The `k` references (or all there are) most like each CA trace (Å), without alignment by residues.

        Of the `shortlist` references whose environments align best, those whose block means superpose best.
        """
        check_chains(queries, "query")
        likely = self._alike(queries).topk(min(max(k, shortlist), len(self)), dim=1).indices
        estimates = in_batches(coarse_tm, queries, self.structures, _numbered(likely)).reshape(likely.shape)
        estimate, order = estimates.topk(min(k, len(self)), dim=1)
        return Nearest(likely.gather(1, order), estimate)

    @torch.no_grad()
    def sharing(self, queries: Sequence[Float[Tensor, "_ 3"]], k: int) -> Int[Tensor, "queries k"]:
        """The `k` references (or all there are) with windows most like those of each CA trace (Å), in falling order.

        What surrounds a window does not matter. Traces shorter than a window have none, and get any references.
        """
        check_chains(queries, "query")
        scores = torch.zeros(len(queries), len(self), device=self.windows.distances.device)
        for row, query in zip(scores, queries, strict=True):
            for window in _window_distances(query, QUERY_STEP):
                squared = torch.cdist(window[None], self.windows.distances)[0].square() / len(window)
                similarity = (-squared / WINDOW_SCALE**2).exp()
                row += torch.zeros_like(row).scatter_reduce_(0, self.windows.reference, similarity, "amax")
        return scores.topk(min(k, len(self)), dim=1).indices

    def _alike(self, queries: Sequence[Float[Tensor, "_ 3"]]) -> Float[Tensor, "queries references"]:
        """Summed similarities of the environments of each query and each reference, best aligned."""
        scores = torch.empty(len(queries), len(self))
        for row, query in zip(scores, queries, strict=True):
            blocks = environments(query[None]).query[0]
            for group in self.groups:
                similarity = (blocks @ group.environments).exp_()
                row[group.members] = best_sums(similarity)[-1, -1].to(row)
        return scores


def max_tm(queries: Sequence[Float[Tensor, "_ 3"]], index: StructureIndex, candidates: int = CANDIDATES) -> MaxTM:
    """The highest TM-score of each CA trace (Å) to any reference, normalised by the length of the query.

    `candidates` references of each query are aligned by residues, and eight more that share pieces with it. More find a
    little more: all scores are lower bounds.
    """
    nearest = torch.cat([index.nearest(queries, candidates).reference, index.sharing(queries, SHARING)], dim=1)
    scores = tm_scores(queries, index.structures, _numbered(nearest))[:, 0].reshape(nearest.shape)
    best, place = scores.max(dim=1)
    return MaxTM(best, nearest.gather(1, place[:, None]).squeeze(1))


def cluster(tm_matrix: Float[Tensor, "s s"], threshold: float) -> Int[Tensor, "s"]:
    """Single-linkage clusters, numbered from 0 in the order of their first members.

    Two structures are linked where TM-scores of both normalisations reach `threshold`, so that a fragment is not
    clustered with what contains it. Clusters are the connected components.
    """
    linked = torch.minimum(tm_matrix, tm_matrix.T) >= threshold
    linked.fill_diagonal_(True)
    count = len(linked)
    first = torch.arange(count, device=linked.device)
    while True:
        lowest = torch.where(linked, first, count).amin(1) if count else first
        lowest = lowest[lowest]
        if torch.equal(lowest, first):
            return first.unique(return_inverse=True)[1]
        first = lowest


def _environments(structures: Sequence[Float[Tensor, "_ 3"]]) -> Float[Tensor, "blocks features references"]:
    return rearrange(environments(*pad_chains(structures)).target, "b k f -> k f b").contiguous()


def _window_distances(structure: Float[Tensor, "n 3"], step: int) -> Float[Tensor, "windows pairs"]:
    """Distances (Å) of the block means of every window, `step` residues apart."""
    first, second = torch.triu_indices(POINTS, POINTS, 1, device=structure.device)
    if len(structure) < WINDOW:
        return structure.new_zeros(0, len(first))
    windows = structure.unfold(0, WINDOW, step)
    points = reduce(windows, "windows xyz (points block) -> windows points xyz", "mean", points=POINTS)
    return (points[:, first] - points[:, second]).norm(dim=-1)


def _numbered(references: Int[Tensor, "q k"]) -> Int[Tensor, "q*k 2"]:
    """The rows query, reference of the pairs."""
    queries = torch.arange(len(references)).repeat_interleave(references.shape[1])
    return torch.stack([queries, references.flatten()], dim=-1)
