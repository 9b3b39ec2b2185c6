"""Counts phi and psi of natural protein chains: the table behind `ophio.metrics.ramachandran`.

Reads `backbones.npz` (natural PDB chains: N, CA, C, O and sequence; its training split only). Writes two arrays
[4, 36, 36] over class and 10-degree bins of phi and psi: `counts` of residues, and `coverage`, the fraction of residues
in denser bins.

    python benchmarks/ramachandran_table.py ../shared/data/backbones.npz ophio/metrics/ramachandran.npz
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ophio.constants import CA, NUM_SLOTS, C, N, O
from ophio.geometry import backbone_torsions
from ophio.metrics.ramachandran import BINS, CLASSES, residue_class, torsion_bins
from ophio.protein import Protein


def training_chains(path: Path) -> Iterator[Protein]:
    data = dict(np.load(path))
    offsets = np.r_[0, np.cumsum(data["lengths"])]
    for entry in np.flatnonzero(data["split"] == "train"):
        rows = slice(offsets[entry], offsets[entry + 1])
        ca = np.cumsum(data["ca_step"][rows].astype(int), axis=0)
        others = (data["nco_high"][rows].astype(int) << 8) + data["nco_low"][rows]
        positions = torch.zeros(len(ca), NUM_SLOTS, 3)
        positions[:, CA] = torch.from_numpy(ca / 100)
        positions[:, [N, C, O]] = torch.from_numpy((ca[:, None] + others) / 100).float()
        mask = torch.zeros(len(ca), NUM_SLOTS, dtype=torch.bool)
        mask[:, [N, CA, C, O]] = True
        yield Protein.from_atoms(positions, mask, torch.from_numpy(data["aatype"][rows].astype(int)))


def count(chains: Iterator[Protein]) -> Tensor:
    counts = torch.zeros(len(CLASSES), BINS, BINS)
    for chain in chains:
        torsions, exists = backbone_torsions(chain.positions, chain.atom_mask)
        phi, psi = torsion_bins(torsions[..., :2]).unbind(-1)
        present = exists[..., :2].all(-1)
        place = [index[present] for index in (residue_class(chain.residue_type), phi, psi)]
        counts.index_put_(place, torch.ones(len(place[0])), accumulate=True)
    return counts


def smooth(counts: Tensor) -> Tensor:
    """Binomial filter over neighbouring bins (periodic): the rims hold a few residues per bin."""
    for dim in (-2, -1):
        counts = (counts.roll(1, dim) + 2 * counts + counts.roll(-1, dim)) / 4
    return counts


def coverage(counts: Tensor) -> Tensor:
    """Fraction of a class's residues that lie in bins denser than each bin."""
    order = smooth(counts).flatten(1).argsort(dim=1, descending=True, stable=True)
    share = counts.flatten(1).double().gather(1, order).cumsum(1)
    before = torch.nn.functional.pad(share, (1, 0))[:, :-1] / share[:, -1:]
    return torch.zeros_like(before).scatter(1, order, before).reshape(counts.shape).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts = count(training_chains(options.backbones))
    np.savez_compressed(options.output, counts=counts.int().numpy(), coverage=coverage(counts).numpy())
    for name, table in zip(CLASSES, counts, strict=True):
        print(f"{name}: {int(table.sum())} residues in {int((table > 0).sum())} of {BINS * BINS} bins")


if __name__ == "__main__":
    main()
