"""Models x a corpus split -> the table of reconstruction against compression.

    python pipelines/reconstruct.py corpus=CORPUS models=[mini,runs/ladder_17]
    python pipelines/reconstruct.py corpus=CORPUS models=[monomer] bins=[40,128,256,513]

Reads `corpus` and the models; writes the folder `output`: table.csv and table.md (a row a model, or a model and range of lengths: means, medians and 95 %
intervals), chains.csv (a row a chain), curve.png (with matplotlib). Options: configs/reconstruct.yaml.
"""

import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from math import prod
from pathlib import Path

from ophio.config import pipeline
from ophio.data.corpus import Corpus
from ophio.files import write_whole
from ophio.pretrained import load, read_card
from ophio.reconstruction import evaluate, table_row
from ophio.tables import markdown, write_csv

VIZ = Path(__file__).parents[1] / "viz"


@pipeline("reconstruct")
def main(
    models: str | list[str],
    corpus: str | list[str],
    output: str,
    split: str,
    crop_length: int | None,
    min_length: int | None,
    max_length: int | None,
    bins: list[int] | None,
    limit: int | None,
    batch_size: int,
) -> None:
    cards = {name: read_card(name) for name in ([models] if isinstance(models, str) else models)}
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    chains, rows = [], []
    for name, card in cards.items():
        made_for = card.get("chains", {})
        whole = (min_length or made_for.get("min_length") or 1, max_length or made_for.get("max_length"))
        model = load(name)
        for lengths in [(low, high - 1) for low, high in pairwise(bins)] if bins else [whole]:
            corpora = [Corpus(path, split, *lengths) for path in ([corpus] if isinstance(corpus, str) else corpus)]
            reports = evaluate(model, corpora, crop_length or made_for.get("crop_length"), batch_size, limit)
            chains += [{"model": card["name"], **report} for report in reports]
            arguments = card["arguments"]
            what = {"model": card["name"], "architecture": arguments.get("architecture", "ophio")}
            what |= {"parameters": card["parameters"], "stride": prod(arguments["strides"])}
            rows.append(what | ({"lengths": f"{lengths[0]}-{lengths[1]}"} if bins else {}) | table_row(reports))
        write_csv(chains, folder / "chains.csv")
        write_csv(rows, folder / "table.csv")
        write_whole(folder / "table.md", (markdown(rows) + "\n").encode())
    print(markdown(rows))
    if find_spec("matplotlib"):
        plot = [VIZ / "curve.py", folder / "table.csv", "--out", folder / "curve.png"]
        subprocess.run([sys.executable, *plot], check=True)


if __name__ == "__main__":
    main()
