"""Samples and energies of some of them -> a map that tells the energies of others, for `ophio select`.

    python pipelines/fit_foldability.py weights=runs/mine samples=SAMPLES reports=REPORT

Reads `weights` (a diffusion model: a folder that training wrote), whose denoiser looks at the structures; folders of
`samples`, and a report of each (of some hundreds: `ophio evaluate SAMPLES --fast --networks 1 --num 1000`). Writes
model.foldability.safetensors and what it is worth into model.json. Options: configs/fit_foldability.yaml.
"""

from pathlib import Path

import numpy as np

from ophio.config import pipeline
from ophio.errors import UserError
from ophio.evaluation.evaluate import read_records
from ophio.evaluation.foldability import Foldability, attach, correlation, invariants
from ophio.evaluation.selection import FEWEST
from ophio.evaluation.structures import read_chain
from ophio.pretrained import load_diffusion


@pipeline("fit_foldability")
def main(weights: str, samples: str | list[str], reports: str | list[str], seed: int) -> None:
    samples, reports = ([folders] if isinstance(folders, str) else folders for folders in (samples, reports))
    if len(samples) != len(reports):
        raise UserError(f"samples, reports: {len(samples)} and {len(reports)} folders; give one report for each")
    loaded = load_diffusion(weights)
    proteins, energies = [], []
    for folder, report in zip(samples, reports, strict=True):
        for record in read_records(Path(report)):
            if record.get("energy") is not None:
                proteins.append(read_chain(Path(folder) / record["name"]))
                energies.append(record["energy"] / record["length"])
    if len(proteins) < FEWEST:
        raise UserError(f"reports: {len(proteins)} energies; give {FEWEST} or more, better some hundreds")
    seen, measured = invariants(*loaded, proteins, seed), np.array(energies)
    lengths = np.array([protein.num_residues for protein in proteins])
    worth = round(correlation(seen, measured), 3)
    path = attach(
        weights, Foldability.fit(seen, lengths, measured), {"structures": len(proteins), "correlation": worth}
    )
    print(f"{path}: fitted to {len(proteins)} energies; correlation {worth:.2f} by cross-validation")


if __name__ == "__main__":
    main()
