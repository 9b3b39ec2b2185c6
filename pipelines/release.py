"""A trained run -> weights and card to ship, without the paths of this machine.

    python pipelines/release.py run=runs/mini_ae name=mini corpus=CORPUS description="..."
    python pipelines/release.py run=runs/mini_diffusion name=mini_diffusion autoencoder=mini_latent description="..."

Reads `run` (made by pipelines/train_autoencoder.py or train_diffusion.py) and `corpus`; writes `output`/NAME.safetensors
and NAME.json. The card of an autoencoder says what it reaches on the test split of `corpus`; that of a diffusion model
names the released `autoencoder` of its latents and the `sampling` settings to use. Options: configs/release.yaml.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ophio.autoencoder import Autoencoder
from ophio.config import pipeline
from ophio.data.corpus import Corpus
from ophio.errors import UserError
from ophio.files import write_whole
from ophio.foldability import FOLDABILITY
from ophio.latents import encoder_fingerprint
from ophio.pretrained import KNOWN, find, load, load_diffusion, load_weights, read_card, save
from ophio.reconstruction import evaluate, table_row
from ophio.sampling import SamplerSettings
from ophio.signatures import as_annotated, check, plain

KEPT = (
    "encoder", "chains", "lengths", "bands", "typical", "foldability", "corpus", "samples", "steps", "seed", "train_seconds", "hardware", "versions", "validation",
)  # fmt: skip


@pipeline("release")
def main(
    run: str,
    name: str,
    corpus: str | None,
    description: str,
    history: str | None,
    output: str,
    autoencoder: str | None,
    geometry_sweeps: int | None,
    half: bool | None,
    sampling: DictConfig | None,
    schedule: DictConfig | None,
) -> None:
    settings = sampling or OmegaConf.create()
    chosen = [str(key) for key in settings if key != "typical"]  # here only whether those of the card are asked for
    check(OmegaConf.masked_copy(settings, chosen), SamplerSettings, "sampling.")
    card = read_card(run)
    released = {"name": name, "description": description, **{key: card[key] for key in KEPT if key in card}}
    if history:
        released["history"] = history
    if "autoencoder" in card:
        model, arguments = load_diffusion(run)[0], _sampled_with(card["arguments"], schedule)
        if autoencoder is None or encoder_fingerprint(load(autoencoder)) != card["encoder"]:
            raise UserError(
                f"autoencoder={autoencoder}: give the released autoencoder whose encoder made the latents of {run}"
            )
        released |= {"autoencoder": autoencoder, "sampling": as_annotated(plain(settings), SamplerSettings)}
    else:
        arguments = card["arguments"]
        if geometry_sweeps is not None:
            arguments = arguments | {"geometry_sweeps": geometry_sweeps, "limit_tau": True}
        model = Autoencoder(**arguments).eval()
        load_weights(model, run)
        released["test"] = _test(model, card["chains"], corpus)
    half = "autoencoder" in card if half is None else half  # 60 MB hold all models
    save(model, arguments, Path(output), released, name, half)
    if "foldability" in released:
        write_whole(Path(output) / f"{name}{FOLDABILITY}", find(run).with_suffix(FOLDABILITY).read_bytes())
    print(f"{output}/{name}.safetensors: {released.get('test') or released['validation']}")


def _sampled_with(arguments: dict, schedule: DictConfig | None) -> dict:
    """The arguments of a diffusion model whose schedule differs in this from that of its training."""
    trained = arguments["process"]["schedule"]
    changes = schedule or OmegaConf.create()
    target = KNOWN[trained["_target_"]]
    check(changes, target, "schedule.")
    return arguments | {"process": arguments["process"] | {"schedule": trained | as_annotated(plain(changes), target)}}


def _test(model: Autoencoder, chains: dict, corpus: str | None) -> dict[str, float | str]:
    if corpus is None:
        raise UserError("corpus=null: the card of an autoencoder needs a corpus with a test split")
    test = Corpus(corpus, "test", chains.get("min_length") or 1, chains.get("max_length"))
    row = table_row(evaluate(model, [test], chains.get("crop_length")))
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


if __name__ == "__main__":
    main()
