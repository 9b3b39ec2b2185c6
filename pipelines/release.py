"""A trained run -> weights and card to ship, the card with what the model reaches on the test split.

    python pipelines/release.py run=runs/mini_ae name=mini corpus=CORPUS description="..."

Reads `run` (made by pipelines/train_autoencoder.py) and `corpus`; writes `output`/NAME.safetensors and NAME.json, without
the paths of this machine. Options: configs/release.yaml.
"""

from pathlib import Path

from ophio.config import pipeline
from ophio.data.corpus import Corpus
from ophio.pretrained import load, read_card, save
from ophio.reconstruction import evaluate, table_row

KEPT = ("chains", "corpus", "steps", "seed", "train_seconds", "hardware", "versions", "validation")


@pipeline("release")
def main(run: str, name: str, corpus: str, description: str, history: str | None, output: str) -> None:
    model, card = load(run), read_card(run)
    chains = card["chains"]
    test = Corpus(corpus, "test", chains.get("min_length") or 1, chains.get("max_length"))
    reports = evaluate(model, [test], chains.get("crop_length"))
    released = {"name": name, "description": description, **{key: card[key] for key in KEPT if key in card}}
    if history:
        released["history"] = history
    released["test"] = {key: round(value, 4) if isinstance(value, float) else value for key, value in table_row(reports).items()}
    save(model, card["arguments"], Path(output), released, name)
    print(f"{output}/{name}.safetensors: {released['test']}")


if __name__ == "__main__":
    main()
