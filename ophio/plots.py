"""Plots as PNG images. They need matplotlib, which `pip install "ophio[view]"` brings."""

import csv
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from itertools import cycle
from pathlib import Path

import numpy as np

from ophio.errors import UserError
from ophio.geometry import backbone_torsions
from ophio.metrics import chain_links
from ophio.protein import Protein

COLUMNS = 3  # of panels in a row
LOGARITHMIC = 5  # highest over lowest value from which an axis is logarithmic
MARKS = ("os", "^v", "*P", "DX")  # of CA and of all atoms, for each architecture
CURVE = ("stride", "numbers_per_residue", "ca_rmsd_median", "all_atom_rmsd_median", "residue_accuracy")


def available() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def figure(panels: int):
    """A figure and its axes, side by side and at most three in a row. No window, no state outside."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(panels, COLUMNS)
    down = -(-panels // across)
    drawn = Figure(figsize=(5 * across, 4 * down), layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn, [drawn.add_subplot(down, across, k + 1) for k in range(panels)]


def png(drawn) -> bytes:
    """The content of a PNG file of a figure, at 100 dots an inch."""
    buffer = BytesIO()
    drawn.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def ramachandran(proteins: Mapping[str, Sequence[Protein]]) -> bytes | None:
    """Density of phi and psi, a panel for each group of chains; None without any."""
    shown = {name: _torsions(chains) for name, chains in proteins.items() if chains}
    if not shown:
        return None
    drawn, axes = figure(len(shown))
    for (name, torsions), axis in zip(shown.items(), axes, strict=True):
        density, _, _ = np.histogram2d(*torsions.T, bins=90, range=[[-180, 180]] * 2, density=len(torsions) > 0)
        axis.imshow(np.log1p(density.T * 1e5), origin="lower", extent=(-180, 180, -180, 180), cmap="viridis")
        axis.set(xlabel="phi (degrees)", ylabel="psi (degrees)", title=f"{name}: {len(torsions)} residues")
        axis.set(xticks=range(-180, 181, 90), yticks=range(-180, 181, 90))
    return png(drawn)


def compression_curve(rows: Sequence[Mapping[str, str]]) -> bytes:
    """Median RMSD and residue accuracy against the numbers stored per residue, a point a model, marks by architecture.

    `rows` of the table that pipelines/reconstruct.py writes.
    """
    from matplotlib import colormaps

    drawn, (left, right) = figure(2)
    factors = sorted({int(row["stride"]) for row in rows})
    colours = {f: colormaps["viridis"](k / max(1, len(factors) - 1)) for k, f in enumerate(factors)}
    marks = dict(zip(dict.fromkeys(row.get("architecture", "ophio") for row in rows), cycle(MARKS)))
    for row in rows:
        numbers, factor = float(row["numbers_per_residue"]), int(row["stride"])
        style = {"color": colours[factor], "linestyle": "none"}
        of_ca, of_all = marks[row.get("architecture", "ophio")]
        left.plot(numbers, float(row["ca_rmsd_median"]), of_ca, **style)
        left.plot(numbers, float(row["all_atom_rmsd_median"]), of_all, markerfacecolor="none", **style)
        right.plot(numbers, float(row["residue_accuracy"]), of_ca, **style)
    for factor, colour in colours.items():
        right.plot([], [], "o", color=colour, label="no down-sampling" if factor == 1 else f"stride {factor}")
    for architecture, (of_ca, of_all) in marks.items():
        whose = f", {architecture}" if len(marks) > 1 else ""
        style = {"color": "black", "linestyle": "none"}
        left.plot([], [], of_ca, label=f"CA{whose}", **style)
        left.plot([], [], of_all, markerfacecolor="none", label=f"all atoms{whose}", **style)
        if len(marks) > 1:
            right.plot([], [], of_ca, label=architecture, **style)
    left.set(xlabel="latent numbers per residue", ylabel="median RMSD (Å)", yscale="log")
    right.set(xlabel="latent numbers per residue", ylabel="residue accuracy")
    left.legend()
    right.legend()
    return png(drawn)


def read_table(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file. Raises UserError where it cannot be read, is empty, or a column is missing."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV table ({error})") from None
    missing = [name for name in needed if not rows or rows[0].get(name) is None]
    if missing:
        what = f"lacks the column {missing[0]}" if rows else "has no rows"
        raise UserError(f"{path}: {what}; a table with {', '.join(needed)} is needed")
    return rows


# Training


Curves = dict[str, tuple[list[int], list[float]]]  # by column: steps, values


def read_training(run: Path) -> tuple[Curves, list[int]]:
    """What a run logged, by column, and the steps at which it was started again.

    Starts are RUN/logs/version_0, version_1, ...; where they overlap, the later one holds: it went on from a checkpoint.
    Raises UserError where there are no logs, or only empty ones.
    """
    logs = sorted(
        run.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.removeprefix("version_"))
    )
    if not logs:
        raise UserError(f"{run}: no logs/version_N/metrics.csv: name a folder that training wrote (output=)")
    joined: list[dict[str, str]] = []
    starts = []
    for path in logs:
        if path.stat().st_size == 0:
            continue  # stopped before it had logged anything
        rows = read_table(path, ["step"])
        first = min(int(row["step"]) for row in rows)
        starts += [first] if joined else []
        joined = [row for row in joined if int(row["step"]) < first] + rows
    curves: Curves = {}
    for row in joined:
        for name in row.keys() - {"epoch", "step"}:
            if row[name]:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(int(row["step"]))
                values.append(float(row[name]))
    if not curves:
        raise UserError(f"{run}: nothing was logged yet")
    return curves, starts


def training_curves(runs: Mapping[str, tuple[Curves, Sequence[int]]], only: Sequence[str] = ()) -> bytes:
    """A panel for each quantity: training dashed, validation solid, a colour a run, dotted lines where it started again.

    Args:
        runs: by name, as `read_training` returns them.
        only: quantities, without train/ and val/; default: all.

    Raises UserError where one of `only` was never logged.
    """
    found = sorted(
        {name.rpartition("/")[2] for curves, _ in runs.values() for name in curves}, key=lambda q: (q != "loss", q)
    )
    unknown = [name for name in only if name not in found]
    if unknown:
        raise UserError(f"{unknown[0]}: was not logged; there are {', '.join(found)}")
    shown = list(only) or found
    drawn, axes = figure(len(shown))
    for quantity, axis in zip(shown, axes, strict=True):
        low, high = np.inf, -np.inf
        for k, (run, (curves, starts)) in enumerate(runs.items()):
            for name, (steps, values) in sorted(curves.items()):
                kind, _, of = name.rpartition("/")
                if of == quantity:
                    low, high = min(low, *values), max(high, *values)
                    style = {"linestyle": "--", "alpha": 0.7} if kind == "train" else {"marker": "o", "markersize": 3}
                    axis.plot(steps, values, color=f"C{k}", label=kind if len(runs) == 1 else f"{run}: {kind}", **style)
            for step in starts:
                axis.axvline(step, color=f"C{k}", linestyle=":", linewidth=0.8)
        axis.set(xlabel="step", title=quantity, yscale="log" if 0 < low < high / LOGARITHMIC else "linear")
        axis.legend(fontsize=8)
    return png(drawn)


# Latents


def latent_map(components: np.ndarray, shares: np.ndarray, colour: Sequence[str] | Sequence[int], title: str) -> bytes:
    """Chains by their first two principal components; words colour by class, numbers by value (`title` says of what).

    Args:
        components: [chains, 2 or more].
        shares: of the variance, of each component.
    """
    drawn, (axis,) = figure(1)
    x, y = components[:, 0], components[:, 1]
    if isinstance(colour[0], str):
        for name in sorted(set(colour)):
            chosen = np.array([label == name for label in colour])
            axis.plot(x[chosen], y[chosen], "o", markersize=4, alpha=0.7, label=f"{name} ({chosen.sum()})")
        axis.legend(title=title, fontsize=8)
    else:
        drawn.colorbar(axis.scatter(x, y, c=colour, s=14, alpha=0.8, cmap="viridis"), label=title)
    axis.set(xlabel=f"PC 1 ({shares[0]:.0%} of the variance)", ylabel=f"PC 2 ({shares[1]:.0%})")
    return png(drawn)


def _torsions(proteins: Sequence[Protein]) -> np.ndarray:
    """phi, psi in degrees of all residues that have both [residues, 2]."""
    found = []
    for protein in proteins:
        links = chain_links(protein.positions, protein.atom_mask)
        angles, exists = backbone_torsions(protein.positions, protein.atom_mask, links)
        found.append(np.degrees(angles[exists[:, :2].all(-1), :2].numpy()))
    return np.concatenate(found)
