"""Native structures -> a table of what each stage on the way to samples costs: ophio/quality.py says which.

    python pipelines/quality.py weights=mini_diffusion corpus=CORPUS

Reads `weights` and `corpus`; writes to `output` a folder of structures and one of their evaluation for each stage, and
quality.csv. Goes on after an interruption. Options: configs/quality.yaml.
"""

from pathlib import Path
from typing import Any

from ophio.config import pipeline
from ophio.evaluation.evaluate import prepare
from ophio.evaluation.report import group_row
from ophio.evaluation.self_consistency import Protocol
from ophio.evaluation.structures import choose_natives
from ophio.foldability import foldability_of
from ophio.io import write_structure
from ophio.metrics import ca_rmsd
from ophio.pretrained import load_diffusion, read_card
from ophio.protein import Protein, stack
from ophio.quality import SAMPLES, stages
from ophio.samples import claim, length_range, released_settings
from ophio.tables import markdown, write_csv

COLUMNS = (
    "structures", "mpnn_score_median", "sctm_median", "sctm_above_0.5", "sctm_above_0.5_low", "sctm_above_0.5_high",
    "scrmsd_median", "designable", "designable_low", "designable_high", "energy_median", "rama_outliers", "clashes_per_100_residues",
)  # fmt: skip


@pipeline("quality")
def main(
    weights: str,
    corpus: str,
    output: str,
    split: str,
    origins: list[str],
    num: int,
    length: str | int,
    noised: list[float],
    denoised: list[float],
    sequences: int,
    num_workers: int,
    seed: int,
) -> None:
    folder, rows = Path(output), []
    options: dict[str, Any] = {
        "weights": weights,
        "corpus": corpus,
        "split": split,
        "origins": list(origins),
        "num": num,
    }
    options |= {"length": str(length), "noised": list(noised), "denoised": list(denoised), "seed": seed}
    claim(folder, options, "stages")
    model = load_diffusion(weights)
    settings = released_settings(read_card(weights), {})
    foldability = foldability_of(weights) if settings.drafts > 1 else None
    natives = choose_natives(Path(corpus), num, length_range(length), origins, seed, split)
    for stage, chains in stages(natives, *model, settings, noised, denoised, seed, foldability):
        place = folder / stage.replace(", ", "_").replace(" ", "_")
        _write(chains, place)
        report = place.with_name(f"{place.name}_report")
        records = prepare(place, report, Protocol(sequences=sequences, seed=seed), num_controls=0).fill(num_workers)
        found = group_row(SAMPLES, records)
        moved = "" if stage == SAMPLES else float(_distances(natives, chains).mean())
        rows.append({"stage": stage, "ca_rmsd": moved} | {name: found.get(name, "") for name in COLUMNS})
        write_csv(rows, folder / "quality.csv")
    print(markdown(rows))


def _write(chains: list[Protein], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k, chain in enumerate(chains, start=1):
        write_structure(chain, folder / f"{k:03d}.pdb")


def _distances(natives: list[Protein], chains: list[Protein]):
    one, other = stack(natives), stack(chains)
    return ca_rmsd(one.positions, other.positions, one.atom_mask & other.atom_mask)


if __name__ == "__main__":
    main()
