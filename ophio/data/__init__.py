"""Corpora of protein chains: preparation, memory-mapped reading, sampling.

`ophio.data.datamodule` is imported by itself, because it brings Lightning.
"""

from ophio.data.corpus import Corpus
from ophio.data.entry import Entry
from ophio.data.filters import Filters
from ophio.data.folder import FolderOptions
from ophio.data.preparation import Settings, prepare
from ophio.data.sampling import LengthBucketBatchSampler

__all__ = [
    "Corpus",
    "Entry",
    "Filters",
    "FolderOptions",
    "LengthBucketBatchSampler",
    "Settings",
    "prepare",
]
