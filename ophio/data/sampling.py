"""Which chains make up an epoch, and which of them share a batch. All of it follows from (seed, epoch)."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from torch.utils.data import DistributedSampler

from ophio.errors import UserError


class Batch(NamedTuple):
    """Chains that are padded to one length, and the seed of everything random that is done to them."""

    indices: list[int]
    seed: int


class LengthBucketBatchSampler(DistributedSampler):
    """Batches of chains of similar length: `max_residues` // edge chains that are padded to that bucket's edge.

    With `clusters`, an epoch draws one member per cluster; otherwise every chain once. All ranks have the same number
    of batches, the same in every epoch: draws differ in length, so a few batches of a further draw are added, or the
    last ones left out. Without `shuffle` (evaluation) every chain comes once, in the same batches each epoch; only
    several ranks may see up to `world_size` - 1 batches twice.

    `start_batch` makes the next iteration begin in the middle. A subclass of DistributedSampler, so that Lightning
    neither replaces it nor forgets to call `set_epoch`. Raises UserError as `check_edges` does.
    """

    def __init__(
        self,
        lengths: Int[np.ndarray, " n"],
        edges: Sequence[int],
        max_residues: int,
        clusters: Int[np.ndarray, " n"] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        # of a dataset it asks the length alone
        super().__init__(lengths, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)  # ty: ignore[invalid-argument-type]
        self.edges = check_edges(edges, int(lengths.max()), max_residues)
        self.lengths, self.max_residues, self.clusters = lengths, max_residues, clusters
        self.start_batch = 0
        self.num_samples = -(-len(self._draw(0, 0)) // world_size)

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank, wherever the next iteration starts."""
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.start_batch = 0
        super().set_epoch(epoch)

    def __iter__(self) -> Iterator[Batch]:
        start, self.start_batch = self.start_batch, 0
        yield from self._epoch()[start:]

    def _epoch(self) -> list[Batch]:
        epoch = self.epoch if self.shuffle else 0
        total = len(self) * self.num_replicas
        batches: list[list[int]] = []
        repeat = 0
        while len(batches) < total:
            batches += self._draw(epoch, repeat)
            repeat += self.shuffle
        seeds = np.random.default_rng((self.seed, epoch)).integers(2**62, size=total).tolist()
        return [Batch(*pair) for pair in zip(batches[:total], seeds, strict=True)][self.rank :: self.num_replicas]

    def _draw(self, epoch: int, repeat: int) -> list[list[int]]:
        generator = np.random.default_rng((self.seed, epoch, repeat))
        if self.clusters is not None:
            indices = one_per_cluster(self.clusters, generator)
        elif self.shuffle:
            indices = generator.permutation(len(self.lengths))
        else:
            indices = np.argsort(self.lengths, kind="stable")
        batches = bucket_batches(self.lengths, indices, self.edges, self.max_residues)
        order = generator.permutation(len(batches)) if self.shuffle else range(len(batches))
        return [batches[k] for k in order]


def one_per_cluster(clusters: Int[np.ndarray, " n"], generator: np.random.Generator) -> Int[np.ndarray, " clusters"]:
    """Index of a random member of each cluster, in random order."""
    members = np.argsort(clusters, kind="stable")
    _, starts, sizes = np.unique(clusters[members], return_index=True, return_counts=True)
    drawn = members[starts + generator.integers(sizes)]
    return generator.permutation(drawn)


def bucket_batches(
    lengths: Int[np.ndarray, " n"], indices: Int[np.ndarray, " m"], edges: Sequence[int], max_residues: int
) -> list[list[int]]:
    """Splits `indices`, in their order, into batches whose chains fall into the same bucket."""
    bucket = np.searchsorted(edges, lengths[indices])
    batches = []
    for k, edge in enumerate(edges):
        inside = indices[bucket == k].tolist()
        size = max_residues // edge
        batches += [inside[start : start + size] for start in range(0, len(inside), size)]
    return batches


def check_edges(edges: Sequence[int], longest: int, max_residues: int) -> list[int]:
    """The edges in use: up to the first that holds the longest chain.

    Raises UserError where they do not rise, none holds it, or a batch has no room for one chain of every bucket.
    """
    edges = list(edges)
    if not edges or edges != sorted(set(edges)) or edges[0] < 1:
        raise UserError(f"bucket_edges={edges}: give rising lengths, for example [32, 64, 128]")
    if longest > edges[-1]:
        raise UserError(
            f"bucket_edges end at {edges[-1]}, the longest chain has {longest} residues: "
            "add an edge, or set crop_length or max_length"
        )
    edges = edges[: bisect_left(edges, longest) + 1]
    if max_residues < edges[-1]:
        raise UserError(f"max_residues={max_residues} does not hold one chain of {edges[-1]} residues (bucket_edges)")
    return edges
