"""Samples and the report of their evaluation -> the best of them, for a model to learn from.

    python pipelines/select_samples.py samples=SAMPLES report=REPORT output=BEST

Reads `samples` (made by `ophio sample`), `report` (made by `ophio evaluate --fast`) and the card of `model`; writes
`output`: copies of the structures with the lowest energy for their length and content, within the bands of the training
data. pipelines/encode_latents.py takes them in with `samples`. Options: configs/select_samples.yaml.
"""

from pathlib import Path

from ophio.config import pipeline
from ophio.errors import UserError
from ophio.evaluation.evaluate import read_records
from ophio.evaluation.selection import best_samples
from ophio.files import write_whole
from ophio.pretrained import read_card


@pipeline("select_samples")
def main(samples: str, report: str, output: str, model: str, share: float) -> None:
    folder, records = Path(output), read_records(Path(report))
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{output}: not empty; give another folder")
    best = best_samples(records, share, read_card(model)["bands"])
    folder.mkdir(parents=True, exist_ok=True)
    for name in best:
        write_whole(folder / name, (Path(samples) / name).read_bytes())
    print(f"{output}: {len(best)} of {len(records)} samples")


if __name__ == "__main__":
    main()
