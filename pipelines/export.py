"""Chains of a corpus -> mmCIF files, for example to evaluate natives like samples.

    python pipelines/export.py corpus=CORPUS output=natives origins=[designed] length=40-100

Reads `corpus`; writes a file a chain to `output`, drawn by `seed`. Options: configs/export.yaml.
"""

from pathlib import Path

import numpy as np

from ophio.config import pipeline
from ophio.data.corpus import Corpus
from ophio.data.sampling import one_per_cluster
from ophio.errors import UserError
from ophio.evaluation.structures import file_name
from ophio.io import write_structure
from ophio.samples import length_range


@pipeline("export")
def main(
    corpus: str,
    output: str,
    split: str,
    origins: list[str],
    length: str | int,
    num: int,
    cluster_balanced: bool,
    seed: int,
) -> None:
    if num < 1:
        raise UserError(f"num={num}: give a number of chains, at least 1")
    chains, folder = Corpus(corpus, split, *length_range(length), origins), Path(output)
    generator = np.random.default_rng(seed)
    order = one_per_cluster(chains.clusters, generator) if cluster_balanced else generator.permutation(len(chains))
    drawn = order[:num]
    folder.mkdir(parents=True, exist_ok=True)
    for number, k in enumerate(drawn.tolist(), start=1):
        chain = chains[k]
        write_structure(chain, folder / f"{number:03d}_{file_name(chain.name)}.cif")
    print(f"{folder}: {len(drawn)} of {len(chains)} chains")


if __name__ == "__main__":
    main()
