"""Samples and the report of some of them -> the best of all, for a model to learn from.

    python pipelines/select_samples.py samples=SAMPLES report=REPORT output=BEST

Reads `samples` (made by `ophio sample`, or chains of a corpus: pipelines/export.py), `report` (of all or some hundreds
of them: `ophio evaluate SAMPLES --fast --num 1000`) and `weights` of a diffusion model, whose denoiser looks at them;
writes `output`: copies of the structures with the lowest energy for their length, common folds marked down. Energies
that the report does not have are told from what the denoiser sees.
pipelines/encode_latents.py takes them in with `samples`. Options: configs/select_samples.yaml.
"""

import math
import shutil
from pathlib import Path

from ophio.config import pipeline
from ophio.evaluation.evaluate import read_records
from ophio.evaluation.selection import best_samples, judged
from ophio.evaluation.structures import structure_files
from ophio.files import check_new_folder, whole_folder
from ophio.io import read_structure
from ophio.pretrained import load_diffusion, read_card


@pipeline("select_samples")
def main(
    samples: str, report: str, output: str, weights: str, share: float, commonness: float, banded: list[str], seed: int
) -> None:
    folder, records = Path(output), read_records(Path(report))
    check_new_folder(folder)
    files, bands = structure_files(Path(samples))[0], read_card(weights)["bands"]
    measured = {record["name"]: record["energy"] for record in records if record.get("energy") is not None}
    energies = [measured.get(file.name, math.nan) for file in files]
    columns, correlation = judged([read_structure(file) for file in files], energies, *load_diffusion(weights), seed)
    best = [files[k] for k in best_samples(columns, share, bands, banded, commonness)]
    with whole_folder(folder) as unfinished:  # a part of the best would be learned from like the whole
        for file in best:
            shutil.copyfile(file, unfinished / file.name)
    print(
        f"{output}: {len(best)} of {len(files)} samples; {len(measured)} energies measured, the others told "
        f"(correlation {correlation:.2f})"
    )


if __name__ == "__main__":
    main()
