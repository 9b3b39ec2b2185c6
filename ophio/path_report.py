"""How physical a path between conformations is: numbers of every frame, of the path, and of the two baselines."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio.interpolation import cartesian_line, torsion_path
from ophio.metrics import validity_report
from ophio.metrics.core import core_superposition
from ophio.metrics.rmsd import rmsd
from ophio.pairing import common_links, partners
from ophio.protein import Protein, stack

VALIDITY = {  # column: what it is called in tables
    "bond_outliers": "bond outliers",
    "angle_outliers": "angle outliers",
    "omega_outliers": "omega outliers",
    "rama_outliers": "Rama outliers",
    "clashes": "clashes/1000 atoms",
    "chain_breaks": "chain breaks",
}
MIDDLE = (1 / 3, 2 / 3)  # of the way from one structure to the next
LATENT, CARTESIAN, TORSIONS = "latent", "cartesian", "torsions"
STILL = 0.01  # Å between two structures: no way to go

Baseline = Callable[[Protein, Protein, int], list[Protein]]
BASELINES: dict[str, Baseline] = {CARTESIAN: cartesian_line, TORSIONS: torsion_path}


def baselines(structures: Sequence[Protein], num: int) -> dict[str, list[Protein]]:
    """Straight lines of atoms and of torsions through the structures, with as many frames as `path_through`."""
    return {name: _chained(structures, num, line) for name, line in BASELINES.items()}


def _chained(structures: Sequence[Protein], num: int, line: Baseline) -> list[Protein]:
    frames: list[Protein] = []
    for a, b in pairwise(structures):
        made = line(a, b, num)
        frames += made[1:] if frames else made
    return frames


def path_report(frames: Sequence[Protein], structures: Sequence[Protein], num: int) -> dict:
    """`frames`: a row a frame; `path`: numbers of the whole path.

    A row has the frame's place (0 at the first structure, 1 at the second, ...), the fractions and counts of
    `metrics.validity_report`, CA RMSD (Å, superposed) and TM-score to the structures `from` and `to` that it lies
    between, and the CA RMSD to the frame before (`step`). For the path see `path_numbers`.
    """
    links = common_links(structures)
    place = torch.arange(len(frames)) / (num - 1)
    start = (place.ceil().long() - 1).clamp(min=0)  # a structure that the path passes through ends a segment
    columns = {"place": place, **_validity(frames, links), **_distances(frames, structures, start)}
    numbers = {name: [_number(value) for value in column] for name, column in columns.items()}
    rows = [{"frame": k + 1, **{name: values[k] for name, values in numbers.items()}} for k in range(len(frames))]
    return {"path": path_numbers(columns, start, structures), "frames": rows}


def path_numbers(
    columns: Mapping[str, Float[Tensor, "T"]], start: Int[Tensor, "T"], structures: Sequence[Protein]
) -> dict:
    """Of a whole path.

    `arc_length`: CA RMSD from frame to frame, added up, Å; `direct`: the same from structure to structure; `detour`:
    their ratio. `monotonicity`: share of the steps that lead away from the last structure and towards the next one
    (each counts half). `largest_step`: over the mean step. `ends` and `middle`: means of the validity over the frames
    at the structures, and over those of the middle third of the way between; `worst`: the highest of all frames.
    """
    place, step = columns["place"], columns["step"][1:]
    direct = float(sum(_ca_rmsd(a.ca, b.ca) for a, b in pairwise(structures)))
    arc, within = float(step.sum()), start[1:] == start[:-1]
    away = (columns["rmsd_from"].diff() > 0)[within].double().mean()
    nearer = (columns["rmsd_to"].diff() < 0)[within].double().mean()
    moves = direct > STILL
    on_the_way = place - start
    at_ends = (place - place.round()).abs() < 1e-6
    in_middle = (on_the_way >= MIDDLE[0] - 1e-6) & (on_the_way <= MIDDLE[1] + 1e-6)
    return {
        "arc_length": arc,
        "direct": direct,
        "detour": arc / direct if moves else None,
        "monotonicity": _number(0.5 * (away + nearer)) if moves else None,
        "largest_step": _number(step.max() / step.mean()) if moves else None,
        "end_rmsd": _number(_end_rmsd(columns, start, at_ends)),
        "ends": {name: _number(columns[name][at_ends].mean()) for name in VALIDITY},
        "middle": {name: _number(columns[name][in_middle].mean()) for name in VALIDITY},
        "worst": {name: _number(columns[name].max()) for name in VALIDITY},
    }


def closest_approach(frames: Sequence[Protein], first: Protein, reference: Protein) -> dict[str, Any]:
    """The frame nearest to a reference structure, and its CA RMSD (Å) over the residues that both have.

    `first` is the structure that named the frames' residues. Raises UserError where the sequences differ too much.
    """
    partner = partners(first, reference)
    both = (partner >= 0) & reference.residue_mask[partner]
    distance = _ca_rmsd(torch.stack([frame.ca[both] for frame in frames]), reference.ca[partner[both]])
    return {"ca_rmsd": _number(distance.min()), "frame": int(distance.argmin()) + 1, "residues": int(both.sum())}


def _validity(frames: Sequence[Protein], links: Bool[Tensor, "pairs"]) -> dict[str, Float[Tensor, "T"]]:
    report = validity_report(stack(frames), links.expand(len(frames), -1))
    return {name: report[name] for name in VALIDITY}


def _distances(
    frames: Sequence[Protein], structures: Sequence[Protein], start: Int[Tensor, "T"]
) -> dict[str, Float[Tensor, "T"]]:
    ca, mask = torch.stack([frame.ca for frame in frames]), structures[0].residue_mask
    goals = torch.stack([structure.ca for structure in structures])
    before, after = goals[start], goals[start + 1]
    return {
        "rmsd_from": _ca_rmsd(ca, before),
        "rmsd_to": _ca_rmsd(ca, after),
        "tm_from": core_superposition(ca, before, mask).tm_score,
        "tm_to": core_superposition(ca, after, mask).tm_score,
        "step": torch.cat([ca.new_zeros(1), _ca_rmsd(ca[1:], ca[:-1])]),
    }


def _ca_rmsd(a: Float[Tensor, "*#batch n 3"], b: Float[Tensor, "*#batch n 3"]) -> Float[Tensor, "*batch"]:
    a, b = torch.broadcast_tensors(a, b)
    return rmsd(a, b, torch.ones(a.shape[:-1], dtype=torch.bool))


def _end_rmsd(columns: Mapping[str, Tensor], start: Int[Tensor, "T"], at_ends: Bool[Tensor, "T"]) -> Tensor:
    """Mean CA RMSD of the frames at the structures to these."""
    at_start = columns["place"] == start
    return torch.where(at_start, columns["rmsd_from"], columns["rmsd_to"])[at_ends].mean()


def _number(value: Tensor) -> float | None:
    """Rounded for JSON, which knows no NaN."""
    number = float(value)
    return round(number, 5) if np.isfinite(number) else None
