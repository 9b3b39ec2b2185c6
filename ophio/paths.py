"""Paths as files: conformations read, a path and its report written."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from biotite.structure.io.dcd import DCDFile
from biotite.structure.io.xtc import XTCFile

from ophio.errors import UserError
from ophio.files import write_whole
from ophio.io import SUFFIXES, num_models, read_models, read_structure, without_gz, write_structure
from ophio.pages import path_page
from ophio.pairing import partners
from ophio.path_report import LATENT, VALIDITY, closest_approach
from ophio.protein import Protein
from ophio.tables import markdown

TRAJECTORIES = {".dcd": DCDFile, ".xtc": XTCFile}
WHOLE = {
    "end_rmsd": "CA RMSD of the ends, Å",
    "arc_length": "arc length, Å",
    "detour": "arc length / CA RMSD",
    "monotonicity": "monotonicity",
    "largest_step": "largest step / mean",
}


def read_conformations(
    files: Sequence[Path], chains: str | None = None, model: int = 1, skip_nonstandard: bool = False
) -> list[Protein]:
    """One chain of each file, or of every model of a single one.

    Args:
        chains: a chain id for all files, or one for each, separated by commas.
        model: of each of several files, counted from 1.

    Raises:
        UserError: a single file of one model, a number of chain ids that fits no file, or a file that cannot be read.
    """
    ids = chains.split(",") if chains is not None else [None]
    if len(ids) not in (1, len(files)):
        raise UserError(f"--chain {chains}: {len(ids)} chain ids for {len(files)} files: give one, or one for each")
    ids = ids * len(files) if len(ids) == 1 else ids
    if len(files) > 1:
        found = [read_structure(file, chain, model, skip_nonstandard) for file, chain in zip(files, ids, strict=True)]
        return _named(found)
    if num_models(files[0]) < 2:
        raise UserError(f"{files[0]}: a single model: give a second structure, or a file of several models")
    models = read_models(files[0], ids[0], skip_nonstandard)
    return [protein.replace(name=f"{protein.name} model {k}") for k, protein in enumerate(models, start=1)]


def read_references(files: Sequence[Path], skip_nonstandard: bool = False) -> list[Protein]:
    """The first protein chain of every model of each file."""
    found = []
    for file in files:
        models = read_models(file, skip_nonstandard=skip_nonstandard)
        names = [f"{file.name} model {k}" for k in range(1, len(models) + 1)] if len(models) > 1 else [file.name]
        found += [protein.replace(name=name) for protein, name in zip(models, names, strict=True)]
    return found


def check_references(references: Sequence[Protein], first: Protein) -> None:
    """Raises UserError where one is of another sequence, before anything is computed."""
    for reference in references:
        partners(first, reference)


def _named(proteins: Sequence[Protein]) -> list[Protein]:
    """Equal names get numbers, so that messages tell them apart."""
    names = [protein.name for protein in proteins]
    return [
        protein if names.count(protein.name) == 1 else protein.replace(name=f"{protein.name} ({k})")
        for k, protein in enumerate(proteins, start=1)
    ]


def report_of_paths(
    made: dict[str, list[Protein]],
    reports: dict[str, dict],
    structures: Sequence[Protein],
    references: Sequence[Protein],
) -> dict:
    """What path.json holds: a report for each path, and how near each comes to every reference."""

    def near_to(reference: Protein) -> dict:
        return {name: closest_approach(frames, structures[0], reference) for name, frames in made.items()}

    near = [{"name": reference.name, **near_to(reference)} for reference in references]
    what = {"structures": [protein.name for protein in structures], "residues": structures[0].num_residues}
    return {**what, "paths": reports, "references": near}


def write_path(
    frames: Sequence[Protein], report: dict, out: Path, trajectory: Path | None = None, viewer_js: str | None = None
) -> None:
    """OUT (models of one file), OUT's name with .json and .html, and the trajectory on request.

    `viewer_js`: as for `ophio.pages.grid`.
    """
    write_structure(frames, out)
    write_whole(beside(out, ".json"), (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    title = f"{' to '.join(report['structures'])}: {len(frames)} frames"
    page = path_page(frames, title, curves(report), summary_rows(report["paths"]), viewer_js)
    write_whole(beside(out, ".html"), page.encode())
    if trajectory is not None:
        write_trajectory(frames, trajectory)


def curves(report: dict) -> dict[str, dict[str, list[float | None]]]:
    """What the page plots: the way of the latent path, and the validity of all paths."""
    paths = {name: made["frames"] for name, made in report["paths"].items()}
    ends = {"from": "rmsd_from", "to": "rmsd_to"}
    plots = {"CA RMSD to the structures, Å": {text: [row[key] for row in paths[LATENT]] for text, key in ends.items()}}
    for key, text in VALIDITY.items():
        plots[text] = {name: [row[key] for row in rows] for name, rows in paths.items()}
    return plots


def beside(out: Path, suffix: str) -> Path:
    """The name of OUT, without .gz and its format, with another suffix."""
    return out.with_name(Path(without_gz(out.name)).with_suffix(suffix).name)


def write_trajectory(frames: Sequence[Protein], path: Path) -> None:
    """Coordinates alone, DCD or XTC by the suffix; the atoms are those of the structure file, in its order.

    Raises UserError for another suffix, or where the file cannot be written.
    """
    kind = check_trajectory(path)
    present = frames[0].atom_mask
    file = kind()
    file.set_coord(np.stack([frame.positions[present].numpy() for frame in frames]).astype(np.float32))
    with TemporaryDirectory() as folder:
        whole = Path(folder) / f"path{path.suffix.lower()}"
        file.write(str(whole))
        write_whole(path, whole.read_bytes())


def check_outputs(out: Path, trajectory: Path | None, inputs: Sequence[Path]) -> None:
    """Raises UserError for formats that do not exist, and where a file read would be written over."""
    if not out.name.lower().removesuffix(".gz").endswith(SUFFIXES):
        raise UserError(
            f"--out {out}: the path is a structure file of many models: end its name in .pdb, .cif or .bcif"
        )
    if trajectory is not None:
        check_trajectory(trajectory)
    targets = [out, beside(out, ".json"), beside(out, ".html"), *([trajectory] if trajectory else [])]
    read = {path.resolve() for path in inputs}
    for target in targets:
        if target.resolve() in read:
            raise UserError(f"--out {out}: would overwrite {target}, an input: give another name")


def check_trajectory(path: Path) -> type:
    """Biotite's class for the format that the suffix names. Raises UserError for another suffix than .dcd and .xtc."""
    if path.suffix.lower() not in TRAJECTORIES:
        raise UserError(f"--trajectory {path}: unknown format {path.suffix or 'without suffix'}: use .dcd or .xtc")
    return TRAJECTORIES[path.suffix.lower()]


def summary(report: dict, out: Path) -> str:
    """A table of the paths, and how near they come to the references."""
    lines = [markdown(summary_rows(report["paths"]))]
    if report["references"]:
        near = [{"reference": r["name"], **{n: r[n]["ca_rmsd"] for n in report["paths"]}} for r in report["references"]]
        mean = {n: float(np.mean([row[n] for row in near])) for n in report["paths"]}
        lines.append("Closest CA RMSD, Å:\n" + markdown([*near, {"reference": "mean", **mean}]))
    where = f"{len(report['paths'][LATENT]['frames'])} frames in {out}; report in {beside(out, '.json')}"
    return "\n\n".join([*lines, f"{where}; to look at: {beside(out, '.html')}"])


def summary_rows(paths: dict[str, dict]) -> list[dict]:
    """A row a number; validity as "at the structures / in the middle" of each path."""
    numbers = {name: made["path"] for name, made in paths.items()}
    rows = [{"": text, **{name: _text(path[key]) for name, path in numbers.items()}} for key, text in WHOLE.items()]
    for key, text in VALIDITY.items():
        both = {name: f"{_text(path['ends'][key])} / {_text(path['middle'][key])}" for name, path in numbers.items()}
        rows.append({"": f"{text}, ends / middle", **both})
    return rows


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
