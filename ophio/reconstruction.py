"""How well a model gives back what it encoded: chain by chain, and over a corpus."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ophio.autoencoder import Autoencoder, Latent
from ophio.data.corpus import Corpus
from ophio.metrics import reconstruction_report
from ophio.pages import Entry, overlay
from ophio.protein import Protein, stack

COLUMNS = {  # column: what it is called in tables
    "residues": "residues",
    "nodes": "nodes",
    "numbers_per_residue": "numbers/residue",
    "ca_rmsd": "CA RMSD",
    "all_atom_rmsd": "all-atom RMSD",
    "residue_accuracy": "accuracy",
    "gdt_ts": "GDT-TS",
    "tm_score": "TM",
    "lddt": "lDDT",
    "bond_outliers": "bond outliers",
    "angle_outliers": "angle outliers",
    "rama_outliers": "Rama outliers",
    "clashes": "clashes",
    "chirality_errors": "D-residues",
    "mirrored": "mirrored",
}


@dataclass(frozen=True)
class Reconstruction:
    """A chain, what the model makes of it, and how the two compare (`metrics.reconstruction_report`)."""

    true: Protein
    predicted: Protein
    latent: Latent
    report: dict[str, float]


@torch.no_grad()
def reconstruct(model: Autoencoder, proteins: Iterable[Protein], batch_size: int = 1) -> Iterator[Reconstruction]:
    """Encodes and decodes chains, `batch_size` at a time. The prediction sees nothing but the latent."""
    batch: list[Protein] = []
    for protein in proteins:
        batch.append(protein)
        if len(batch) == batch_size:
            yield from _reconstruct_batch(model, batch)
            batch = []
    if batch:
        yield from _reconstruct_batch(model, batch)


def _reconstruct_batch(model: Autoencoder, proteins: list[Protein]) -> Iterator[Reconstruction]:
    device = next(model.parameters()).device
    true = model.seen(stack(proteins))
    proteins = [model.seen(protein) for protein in proteins]
    latent = model.encode(true.to(device)).map(lambda t: t.cpu())
    predicted = model.decode(latent.map(lambda t: t.to(device))).map(lambda t: t.cpu())
    report = reconstruction_report(predicted, true)
    for k, protein in enumerate(proteins):
        one = latent.map(lambda t, k=k: t[k])
        length = protein.num_residues
        chain = predicted.map(lambda t, k=k: t[k]).crop(0, length)
        values = {name: float(column[k]) for name, column in report.items()}
        values |= {
            "residues": int(protein.residue_mask.sum()),
            "nodes": int(one.cloud.mask.sum()),
            "numbers_per_residue": one.numbers_per_residue,
        }
        yield Reconstruction(protein, chain.replace(name=protein.name, chain_id=protein.chain_id), one, values)


def overlay_of(result: Reconstruction, name: str) -> Entry:
    """The reconstruction over its original, for `ophio.pages.grid_page`."""
    report = result.report
    size = f"{report['residues']} residues, {report['nodes']} nodes"
    agreement = (
        f"CA RMSD {report['ca_rmsd']:.3f} Å, all atoms {report['all_atom_rmsd']:.3f} Å, TM {report['tm_score']:.3f}"
    )
    return overlay(result.predicted, result.true, name, f"{size}; {agreement}")


def evaluate(
    model: Autoencoder,
    corpora: Sequence[Corpus],
    crop_length: int | None,
    batch_size: int = 16,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Reports of every chain, or of `limit` chains of all lengths; progress on stderr.

    With `crop_length`, of all consecutive windows of that many residues of each chain, as a model that was made for such
    windows sees them.
    """
    where = [(corpus, k) for corpus in corpora for k in range(len(corpus))]
    where.sort(key=lambda item: item[0].lengths[item[1]])
    count = min(limit or len(where), len(where))
    where = [where[k * len(where) // count] for k in range(count)]  # of all lengths
    windows = [
        (corpus, k, start, start + (crop_length or corpus.lengths[k]))
        for corpus, k in where
        for start in range(0, corpus.lengths[k], crop_length or corpus.lengths[k])
    ]
    windows = [window for window in windows if window[3] <= window[0].lengths[window[1]]]
    proteins = (corpus[k].crop(start, int(stop)) for corpus, k, start, stop in windows)
    progress = tqdm(reconstruct(model, proteins, batch_size), total=len(windows), unit="chain", disable=None)
    return [{"name": result.true.name, **{key: result.report[key] for key in COLUMNS}} for result in progress]


def table_row(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of a table: what was stored per residue, and what came back. Outliers are means of fractions of a chain."""
    summary = summarise(reports)
    row: dict[str, Any] = {"chains": len(reports)}
    for name in ("residues", "nodes", "numbers_per_residue"):
        row[name] = summary[name]["mean"]
    row["length_factor"] = sum(r["residues"] for r in reports) / sum(r["nodes"] for r in reports)
    for name in ("ca_rmsd", "all_atom_rmsd"):
        row[f"{name}_median"], row[f"{name}_mean"] = summary[name]["median"], summary[name]["mean"]
        row[f"{name}_mean_ci95"] = f"{summary[name]['low']:.3f}-{summary[name]['high']:.3f}"
    rest = ("residue_accuracy", "gdt_ts", "lddt", "bond_outliers", "angle_outliers", "rama_outliers", "clashes")
    row |= {name: summary[name]["mean"] for name in rest}
    totals = {name: int(sum(report[name] for report in reports)) for name in ("chirality_errors", "mirrored")}
    return row | totals


def bootstrap_interval(values: np.ndarray, statistic=np.mean, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of a statistic over chains."""
    chosen = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(statistic(values[chosen], axis=1), [2.5, 97.5])
    return float(low), float(high)


def summarise(reports: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, median and 95 % interval of the mean of every column, chains without a value left out."""
    summary = {}
    for name in COLUMNS:
        values = np.array([report[name] for report in reports], dtype=float)
        values = values[np.isfinite(values)]
        if len(values):
            low, high = bootstrap_interval(values)
            summary[name] = {"mean": float(values.mean()), "median": float(np.median(values)), "low": low, "high": high}
    return summary
