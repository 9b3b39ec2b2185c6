"""Batches of a corpus or of its latents for Lightning: padded to edges, balanced over clusters, resumable in an epoch."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning
import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import DataLoader, Dataset

from ophio.data.corpus import Corpus, read_info
from ophio.data.latents import BatchedLatents, LatentBatch, LatentCorpus
from ophio.data.preparation import Settings, prepare
from ophio.data.sampling import Batch, LengthBucketBatchSampler
from ophio.data.transforms import random_crop
from ophio.protein import Protein, stack

BUCKET_EDGES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512)
NODE_EDGES = (4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)


class BatchedCorpus(Dataset):
    """`batches[batch]` is a padded batch of chains, cropped to `crop_length` and centred."""

    def __init__(self, corpus: Corpus, bucket_edges: Sequence[int], crop_length: int | None):
        self.corpus, self.edges, self.crop_length = corpus, bucket_edges, crop_length
        self.lengths = corpus.lengths if crop_length is None else np.minimum(corpus.lengths, crop_length)

    def __getitem__(self, index: Batch) -> Protein:
        generator = torch.Generator().manual_seed(index.seed)
        longest = self.lengths[index.indices].max()
        edge = self.edges[np.searchsorted(self.edges, longest)]
        length = self.crop_length or edge
        return stack([random_crop(self.corpus[k], length, generator) for k in index.indices], num_residues=edge)


class BatchLoader(DataLoader):
    """A DataLoader whose state is the number of batches it has handed out, whatever its workers fetched ahead."""

    def __init__(self, dataset: Dataset, sampler: LengthBucketBatchSampler, num_workers: int = 0):
        persistent = num_workers > 0
        super().__init__(
            dataset, sampler=sampler, batch_size=None, num_workers=num_workers, persistent_workers=persistent
        )
        self._order, self._position = sampler, {"epoch": 0, "batch": 0}

    # torch promises an iterator of a class of its own
    def __iter__(self) -> Iterator[Protein | LatentBatch]:  # ty: ignore[incompatible-method-override]
        self._position = {"epoch": self._order.epoch, "batch": self._order.start_batch}
        for batch in super().__iter__():
            self._position["batch"] += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return dict(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration goes on after the last batch that was handed out."""
        self._order.set_epoch(state["epoch"])
        self._order.start_batch = state["batch"]
        self._position = dict(state)


class _Batches(lightning.LightningDataModule):
    """What both modules share: the part of every batch order that a process of the trainer loads."""

    def __init__(self, cluster_balanced: bool, num_workers: int, seed: int):
        super().__init__()
        self.cluster_balanced, self.num_workers, self.seed = cluster_balanced, num_workers, seed

    def _batches(
        self,
        dataset: Dataset,
        sizes: Int[np.ndarray, "chains"],
        edges: Sequence[int],
        most: int,
        clusters: Int[np.ndarray, "chains"],
        shuffle: bool,
    ) -> BatchLoader:
        """Batches of up to `most` residues or nodes; `shuffle`: in another order every epoch, balanced if so asked."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        balanced = clusters if shuffle and self.cluster_balanced else None
        sampler = LengthBucketBatchSampler(sizes, edges, most, balanced, shuffle, self.seed, rank, world_size)
        return BatchLoader(dataset, sampler, self.num_workers)


class CorpusDataModule(_Batches):
    """Train, val and test batches (`Protein`, [B, L, ...]) of the corpus at `path`.

    Args:
        path: a corpus made by pipelines/prepare_data.py.
        input: a folder of structure files or an .npz archive that `make_corpus` makes the corpus of first.
        max_residues: residues in a batch, padding included: a batch has max_residues // edge chains.
        bucket_edges: rising lengths; a chain is padded to the next one.
        crop_length: longer chains give a random window of this many residues; None: whole chains.
        train_crop_length: the same in training alone, so that validation sees whole chains.
        min_length, max_length, origins: chains to use (of whole chains, before cropping).
        cluster_balanced: a training epoch draws one chain per cluster30 instead of every chain.
        num_workers: loader processes; 0 loads in the training process.
    """

    def __init__(
        self,
        path: str | Path,
        max_residues: int = 4096,
        bucket_edges: Sequence[int] = BUCKET_EDGES,
        crop_length: int | None = None,
        min_length: int = 1,
        max_length: int | None = None,
        origins: Sequence[str] = (),
        cluster_balanced: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        train_crop_length: int | None = None,
        input: str | Path | None = None,
    ):
        super().__init__(cluster_balanced, num_workers, seed)
        self.path, self.input, self.max_residues = path, input, max_residues
        self.crop_length, self.train_crop_length = crop_length, train_crop_length
        self.bucket_edges = list(bucket_edges)
        self.min_length, self.max_length, self.origins = min_length, max_length, list(origins)

    def make_corpus(self) -> None:
        """Makes the corpus of `input`, with the settings that pipelines/prepare_data.py has by default.

        Not Lightning's `prepare_data`, which would do it again for training and for validation.
        """
        if self.input is not None:
            prepare([Path(self.input)], Path(self.path), Settings(), os.cpu_count() or 1)

    def has(self, split: str) -> bool:
        """Whether any chain of the corpus is in the split."""
        return read_info(Path(self.path))["splits"].get(split, 0) > 0

    def corpus(self, split: str) -> Corpus:
        """The chains of a split that are used. Raises UserError where there are none, or there is no corpus."""
        return Corpus(self.path, split, self.min_length, self.max_length, self.origins)

    def train_dataloader(self) -> BatchLoader:
        return self._loader("train", self.train_crop_length or self.crop_length, shuffle=True)

    def val_dataloader(self) -> BatchLoader:
        return self._loader("val", self.crop_length, shuffle=False)

    def test_dataloader(self) -> BatchLoader:
        return self._loader("test", self.crop_length, shuffle=False)

    def _loader(self, split: str, crop_length: int | None, shuffle: bool) -> BatchLoader:
        corpus = self.corpus(split)
        dataset = BatchedCorpus(corpus, self.bucket_edges, crop_length)
        return self._batches(dataset, dataset.lengths, self.bucket_edges, self.max_residues, corpus.clusters, shuffle)


class LatentDataModule(_Batches):
    """Train and val batches (`LatentBatch`) of the latents at `path`.

    Args:
        path: made by pipelines/encode_latents.py.
        max_nodes: nodes in a batch, padding included.
        node_edges: rising numbers of nodes; a chain is padded to the next one.
        cluster_balanced: a training epoch draws one chain per cluster30 instead of every chain.
    """

    def __init__(
        self,
        path: str | Path,
        max_nodes: int = 1024,
        node_edges: Sequence[int] = NODE_EDGES,
        cluster_balanced: bool = True,
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__(cluster_balanced, num_workers, seed)
        self.path, self.max_nodes, self.node_edges = path, max_nodes, list(node_edges)

    def train_dataloader(self) -> BatchLoader:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> BatchLoader:
        return self._loader("val", shuffle=False)

    def _loader(self, split: str, shuffle: bool) -> BatchLoader:
        corpus = LatentCorpus(self.path, split)
        dataset, clusters = BatchedLatents(corpus, self.node_edges), corpus.columns["cluster30"].numpy()
        return self._batches(dataset, corpus.num_nodes, self.node_edges, self.max_nodes, clusters, shuffle)
