"""Samples and energies of some of them -> a map that tells the energies of others, for `ophio select` and drafts.

    python pipelines/fit_foldability.py weights=runs/mine samples=SAMPLES reports=REPORT

Reads `weights` (a diffusion model: a folder that training wrote), whose denoiser looks at the structures; folders of
`samples`, and a report of each (of some hundreds: `ophio evaluate SAMPLES --fast --networks 1 --num 1000`); and `fresh`,
samples of the model as it is, to count among them how common folds are, which `ophio sample --drafts` avoids. Writes
model.foldability.safetensors and what it is worth into model.json. Options: configs/fit_foldability.yaml.
"""

from pathlib import Path

import numpy as np

from ophio.config import pipeline
from ophio.errors import UserError
from ophio.evaluation.commonness import commonness
from ophio.evaluation.evaluate import read_records
from ophio.evaluation.selection import FEWEST
from ophio.evaluation.structures import read_chain, structure_files
from ophio.foldability import COMMON_SHRINKAGE, Foldability, LinearMap, attach, correlation, invariants
from ophio.pretrained import load_diffusion


@pipeline("fit_foldability")
def main(weights: str, samples: str | list[str], reports: str | list[str], fresh: str | None, seed: int) -> None:
    samples, reports = ([folders] if isinstance(folders, str) else folders for folders in (samples, reports))
    if len(samples) != len(reports):
        raise UserError(f"samples, reports: {len(samples)} and {len(reports)} folders; give one report for each")
    counted_in = [] if fresh is None else structure_files(Path(fresh))[0]
    if fresh is not None and len(counted_in) < FEWEST:
        raise UserError(f"fresh={fresh}: {len(counted_in)} structures; give {FEWEST} or more, better some thousand")
    loaded = load_diffusion(weights)
    proteins, energies = [], []
    for folder, report in zip(samples, reports, strict=True):
        for record in read_records(Path(report)):
            if record.get("energy") is not None:
                proteins.append(read_chain(Path(folder) / record["name"]))
                energies.append(record["energy"] / record["length"])
    if len(proteins) < FEWEST:
        raise UserError(f"reports: {len(proteins)} energies; give {FEWEST} or more, better some hundreds")
    seen, measured = invariants(*loaded, proteins), np.array(energies)
    lengths = np.array([protein.num_residues for protein in proteins])
    facts = {"structures": len(proteins), "correlation": round(correlation(seen, measured), 3)}
    common = None
    if counted_in:
        others = [read_chain(path) for path in counted_in]
        counted = commonness([protein.ca for protein in others], seed, progress=True)
        seen_in_others = invariants(*loaded, others)
        common = LinearMap.fit(seen_in_others, counted, COMMON_SHRINKAGE)
        worth = correlation(seen_in_others, counted, shrinkage=COMMON_SHRINKAGE)
        facts |= {"counted": len(others), "commonness_correlation": round(worth, 3)}
    path = attach(weights, Foldability.fit(seen, lengths, measured, common), facts)
    print(
        f"{path}: " + ", ".join(f"{name} {value}" for name, value in facts.items()) + "; correlations cross-validated"
    )


if __name__ == "__main__":
    main()
