"""A diffusion model -> tables of what its samples are like, against the data and what the autoencoder gives back.

    python pipelines/generation.py weights=mini_diffusion corpus=CORPUS output=runs/generation

Reads `weights` (released, or a folder that training wrote) and `corpus` (made by pipelines/prepare_data.py; its train split
for novelty, its test split for the rows to compare with); writes `output`/generation.csv and the samples
themselves, one folder for each number of steps, raw and idealized. Goes on after an interruption. Options: configs/generation.yaml.
"""

from itertools import product
from pathlib import Path

from ophio.config import pipeline
from ophio.data.corpus import Corpus
from ophio.generation import generation_row, native_records, novelty_columns
from ophio.io import read_structure
from ophio.metrics.novelty import StructureIndex, max_tm
from ophio.pretrained import load_diffusion, read_card
from ophio.samples import collect, length_range, prepare
from ophio.tables import markdown, write_csv


@pipeline("generation")
def main(
    weights: str,
    corpus: str,
    output: str,
    num: int,
    length: str | int,
    seed: int,
    sampler: str | None,
    steps: list[int],
    noise_scale: float | None,
    drafts: int | None,
    idealize: list[bool],
    novelty: bool,
    natives: bool,
    batch_size: int | None,
    candidates: int,
) -> None:
    folder, bands, rows = Path(output), read_card(weights)["bands"], []
    if natives:
        test = Corpus(corpus, "test", *length_range(length))
        rows.append({"what": "test split"} | generation_row(native_records(test), bands))
        autoencoder = load_diffusion(weights)[1]
        rows.append({"what": "its reconstruction"} | generation_row(native_records(test, autoencoder), bands))
    if novelty:
        train = Corpus(corpus, "train", *read_card(weights)["lengths"])
        index = StructureIndex.of([train[k].ca for k in range(len(train))])
    for count, finish in product(steps or [None], idealize):
        asked = {"sampler": sampler, "steps": count, "noise_scale": noise_scale, "drafts": drafts}
        asked["idealize"] = finish
        name = f"steps_{count or 'released'}{'_idealized' if finish else ''}"
        run = prepare(weights, num, length, seed, folder / name, asked)
        run.fill(batch_size, num_workers=None)
        records = collect(run.folder, run.items)
        parts = [run.sampler.sampler, f"{run.sampler.steps} steps", f"noise {run.sampler.noise_scale}"]
        parts += [f"{run.sampler.drafts} drafts"] if run.sampler.drafts > 1 else []
        parts += [f"{option} {value}" for option, value in run.sampler.options.items()]
        what = ", ".join(parts + (["idealized"] if finish else []))
        rows.append({"what": what} | generation_row(records, bands))
        if novelty and finish == idealize[-1]:  # the finish hardly changes which fold it is
            traces = [read_structure(run.folder / r["file"]).ca for r in records if "failed" not in r]
            rows[-1] |= novelty_columns(max_tm(traces, index, candidates).tm_score.numpy())
    columns = list({key: None for row in rows for key in row})
    rows = [{key: row.get(key, "") for key in columns} for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(rows, folder / "generation.csv")
    print(markdown(rows))


if __name__ == "__main__":
    main()
