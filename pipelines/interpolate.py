"""Conformations -> tables of how physical the paths between them are, against the Cartesian line and torsions.

    python pipelines/prepare_data.py input=conformations.npz output=CORPUS
    python pipelines/interpolate.py corpus=CORPUS

Reads `corpus`, whose chains have groups (conformations of one sequence); writes to `output`: pairs.csv (the extremes of
every group), approach.csv (how near paths come to simulated intermediates), smoothness.csv (latent distance against CA
RMSD), and summary.csv (a row a model and method). Options: configs/interpolate.yaml.
"""

from itertools import product
from pathlib import Path

from tqdm import tqdm

from ophio.config import pipeline
from ophio.conformations import Journey, groups, pair_summary, smoothness_row
from ophio.data.corpus import Corpus
from ophio.errors import UserError
from ophio.interpolation import METHODS, path_through
from ophio.pretrained import load
from ophio.tables import markdown, write_csv

ENSEMBLE, ENOUGH = "nmr", 4  # conformations


@pipeline("interpolate")
def main(
    corpus: str,
    output: str,
    split: str,
    models: list[str],
    methods: list[str],
    finish: list[bool],
    num: int,
    core_rmsd: list[float],
    max_length: int | None,
) -> None:
    for method in methods:
        if method not in METHODS:
            raise UserError(f"methods: no {method}; there are {', '.join(METHODS)}")
    if len(core_rmsd) != 2:
        raise UserError(f"core_rmsd={core_rmsd}: give the lowest and the highest, Å")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    low, high = core_rmsd
    known = list(groups(Corpus(corpus, split, max_length=max_length)))
    journeys = [Journey.of(group, num) for group in tqdm(known, disable=None) if low <= group.core <= high]
    tables: dict[str, list[dict]] = {"summary": [], "approach": [], "smoothness": [], "pairs": []}
    for name in models:
        model = load(name)
        ensembles = [group for group in known if group.kinds.count(ENSEMBLE) >= ENOUGH]
        tables["smoothness"] += [{"model": name, **smoothness_row(group, model)} for group in ensembles]
        for method, done in product(methods, finish):
            way = {"model": name, "method": method, "finish": done}
            rows = [j.rows(path_through(j.ends, model, num, method, finish=done)) for j in tqdm(journeys, disable=None)]
            tables["pairs"] += [way | pair for pair, _ in rows]
            tables["approach"] += [way | approach for _, approach in rows if approach]
            tables["summary"].append(way | pair_summary([pair for pair, _ in rows]))
            for table, content in tables.items():
                if content:
                    write_csv(content, folder / f"{table}.csv")
    print("\n\n".join(markdown(tables[table]) for table in ("summary", "approach", "smoothness") if tables[table]))


if __name__ == "__main__":
    main()
