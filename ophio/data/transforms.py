"""What happens to a chain between corpus and batch."""

from dataclasses import replace
from itertools import pairwise

import torch

from ophio.data.entry import Entry
from ophio.protein import Protein


def random_crop(protein: Protein, length: int, generator: torch.Generator) -> Protein:
    """A window of `length` consecutive residues, centred on its mean CA; shorter chains stay whole."""
    excess = protein.num_residues - length
    if excess > 0:
        start = int(torch.randint(excess + 1, (), generator=generator))
        protein = protein.crop(start, start + length)
    return protein.center()


def windows(entry: Entry, length: int | None) -> list[Entry]:
    """The entry, or if it is longer than `length`, consecutive pieces of equal size that are not."""
    total = entry.protein.num_residues
    if length is None or total <= length:
        return [entry]
    count = -(-total // length)
    edges = [total * k // count for k in range(count + 1)]
    return [
        replace(entry, protein=entry.protein.crop(start, stop), id=f"{entry.id}_{start + 1}-{stop}")
        for start, stop in pairwise(edges)
    ]
