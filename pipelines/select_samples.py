"""Samples and the report of their evaluation -> the best of them, for a model to learn from.

    python pipelines/select_samples.py samples=SAMPLES report=REPORT output=BEST

Reads `samples` (made by `ophio sample`), `report` (made by `ophio evaluate --fast`) and the card of `model`; writes
`output`: copies of the structures with the lowest energy for their length and content, within the bands of the training
data. pipelines/encode_latents.py takes them in with `samples`. Options: configs/select_samples.yaml.
"""

import os
import shutil
from pathlib import Path

from ophio.config import pipeline
from ophio.errors import UserError
from ophio.evaluation.evaluate import read_records
from ophio.evaluation.selection import best_samples
from ophio.pretrained import read_card


@pipeline("select_samples")
def main(samples: str, report: str, output: str, model: str, share: float) -> None:
    folder, records = Path(output), read_records(Path(report))
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{output}: not empty; give another folder")
    best = best_samples(records, share, read_card(model)["bands"])
    unfinished = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)  # of an interrupted run
    unfinished.mkdir(parents=True)
    for name in best:
        shutil.copyfile(Path(samples) / name, unfinished / name)
    os.replace(unfinished, folder)  # whole or not at all: a part of the best would be learned from like the whole
    print(f"{output}: {len(best)} of {len(records)} samples")


if __name__ == "__main__":
    main()
