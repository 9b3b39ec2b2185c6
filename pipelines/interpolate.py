"""Conformations -> tables of how physical the paths between them are, against the Cartesian line and torsions.

    python pipelines/prepare_data.py input=conformations.npz output=CORPUS filters.min_completeness=0.8
    python pipelines/interpolate.py corpus=CORPUS

Reads `corpus`, whose chains have groups (conformations of one sequence); writes to `output`: pairs.csv (the extremes of every
group), approach.csv (how near paths come to simulated intermediates), smoothness.csv (latent distance against CA RMSD), and
summary.csv (a row a model and method). Options: configs/interpolate.yaml.
"""

from itertools import product
from pathlib import Path

from omegaconf import ListConfig
from tqdm import tqdm

from ophio.config import pipeline
from ophio.conformations import SIMULATED, approach_row, groups, pair_row, pair_summary, smoothness_row
from ophio.data.corpus import Corpus
from ophio.pretrained import load
from ophio.tables import markdown, write_csv

ENSEMBLE, ENOUGH = "nmr", 4  # conformations


@pipeline("interpolate")
def main(
    corpus: str,
    output: str,
    split: str,
    models: ListConfig,
    methods: ListConfig,
    finish: ListConfig,
    num: int,
    core_rmsd: ListConfig,
    max_length: int | None,
) -> None:
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    low, high = core_rmsd
    known = list(groups(Corpus(corpus, split, max_length=max_length)))
    moving = [group for group in known if low <= group.core <= high]
    tables: dict[str, list[dict]] = {"pairs": [], "approach": [], "smoothness": [], "summary": []}
    for name in models:
        model = load(name)
        ensembles = [group for group in known if group.kinds.count(ENSEMBLE) >= ENOUGH]
        tables["smoothness"] += [{"model": name, **smoothness_row(group, model)} for group in ensembles]
        for method, done in product(methods, finish):
            way = {"model": name, "method": method, "finish": done}
            rows = [way | pair_row(group, model, num, method, done) for group in tqdm(moving, disable=None)]
            simulated = [group for group in known if group.kinds.count(SIMULATED) > 2]
            tables["approach"] += [way | approach_row(group, model, num, method, done) for group in simulated]
            tables["pairs"] += rows
            tables["summary"].append(way | pair_summary(rows))
            for table, content in tables.items():
                if content:
                    write_csv(content, folder / f"{table}.csv")
    for content in (tables["summary"], tables["approach"], tables["smoothness"]):
        print(markdown(content) + "\n") if content else None


if __name__ == "__main__":
    main()
