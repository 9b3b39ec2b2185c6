"""A corpus -> a trained autoencoder.

    python pipelines/train_autoencoder.py experiment=mini_ae data.path=CORPUS
    python pipelines/train_autoencoder.py experiment=finetune data.input=MY_PDBS init=monomer

Reads `data.path` (made by pipelines/prepare_data.py, or here, of `data.input`); writes the folder `output`: last.ckpt, logs/version_N/metrics.csv
for each start, and at the end model.safetensors with its card model.json. After an interruption of any kind, the same
command goes on from last.ckpt and ends with the same weights. Options: configs/train_autoencoder.yaml.
"""

from pathlib import Path

import lightning
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ophio.config import pipeline
from ophio.errors import UserError
from ophio.lightning.autoencoder import AutoencoderModule
from ophio.lightning.run import fit
from ophio.pretrained import load_weights, read_card, save
from ophio.signatures import plain


@pipeline("train_autoencoder")
def main(
    model: DictConfig | None,
    loss: DictConfig,
    data: DictConfig,
    trainer: DictConfig,
    optimizer: DictConfig,
    name: str,
    output: str,
    init: str | None,
    decoder_only: bool,
    seed: int,
    total_steps: int,
    warmup_steps: int,
    ema_decay: float,
    checkpoint_every: int,
) -> None:
    if model is None:
        model = _architecture(init)
    config = plain(OmegaConf.create(locals()))  # all options, as they were composed
    lightning.seed_everything(seed, workers=True, verbose=False)
    autoencoder = instantiate(model)
    if init is not None:
        load_weights(autoencoder, init)
    if decoder_only:
        autoencoder.freeze_encoder()
    module = AutoencoderModule(autoencoder, instantiate(loss), instantiate(optimizer), warmup_steps, total_steps)
    chains = instantiate(data)
    chains.make_corpus()
    if trainer.limit_val_batches and not chains.has("val"):
        print(f"{data.path}: no chains for validation, so none is done")
        trainer.limit_val_batches = 0
    facts = fit(module, chains, trainer, Path(output), config, ema_decay, checkpoint_every)
    if facts is not None:
        arguments = {key: value for key, value in config["model"].items() if key != "_target_"}
        made_for = {key: config["data"][key] for key in ("min_length", "max_length", "crop_length")}
        card = {"name": name, "corpus": Path(data.path).name, "chains": made_for, "steps": total_steps, "seed": seed}
        save(autoencoder, arguments, Path(output), card | facts)
        reached = ", ".join(f"{key} {value}" for key, value in facts["validation"].items())
        print(f"{output}/model.safetensors: step {total_steps}; {reached or 'not validated'}")


def _architecture(init: str | None) -> DictConfig:
    if init is None:
        raise UserError("model=null: name the model to go on with, init=monomer")
    return OmegaConf.create({"_target_": "ophio.autoencoder.Autoencoder"} | read_card(init)["arguments"])


if __name__ == "__main__":
    main()
