"""Latents of a corpus -> a trained diffusion model.

    python pipelines/train_diffusion.py experiment=mini_diffusion data.path=LATENTS

Reads `data.path` (made by pipelines/encode_latents.py with `autoencoder`); writes the folder `output`: last.ckpt, logs,
and at the end model.safetensors with its card model.json. After an interruption of any kind, the same command goes on
from last.ckpt. Options: configs/diffusion/train_diffusion.yaml.
"""

import math
from pathlib import Path

import lightning
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ophio.config import pipeline
from ophio.data.latents import check_fresh, read_info, statistics_of
from ophio.errors import UserError
from ophio.latents import encoder_fingerprint
from ophio.lightning.diffusion import DiffusionModule
from ophio.lightning.run import fit
from ophio.pretrained import load, load_weights, save
from ophio.signatures import plain


@pipeline("diffusion/train_diffusion")
def main(
    model: DictConfig,
    data: DictConfig,
    trainer: DictConfig,
    optimizer: DictConfig,
    name: str,
    output: str,
    autoencoder: str,
    init: str | None,
    init_partly: bool,
    seed: int,
    total_steps: int,
    warmup_steps: int,
    ema_decay: float,
    checkpoint_every: int,
    forget_content: float,
    sample_lengths: list[int],
    corpus_below: float | None,
) -> None:
    config = plain(OmegaConf.create(locals()))  # all options, as they were composed
    lightning.seed_everything(seed, workers=True, verbose=False)
    decoder, info = load(autoencoder), read_info(data.path)
    check_fresh(data.path, {"autoencoder": encoder_fingerprint(decoder)})
    if corpus_below is not None:
        if not 0 < corpus_below < math.inf:
            raise UserError(f"corpus_below={corpus_below}: give a noise level above 0, or null")
        if info.get("samples") is None:
            raise UserError(f"corpus_below={corpus_below}: {data.path} holds no samples to learn folds from")
    diffusion = instantiate(model)
    if init is not None:
        load_weights(diffusion, init, init_partly)
    diffusion.set_statistics(statistics_of(info))
    module = DiffusionModule(
        diffusion,
        decoder,
        instantiate(optimizer),
        warmup_steps,
        total_steps,
        forget_content,
        sample_lengths,
        corpus_below,
    )
    facts = fit(module, instantiate(data), trainer, Path(output), config, ema_decay, checkpoint_every)
    if facts is not None:
        card = {
            "name": name,
            "autoencoder": autoencoder,
            "encoder": info["autoencoder"],
            "corpus": info["corpus_name"],
            "samples": info.get("samples"),
            "lengths": info["lengths"],
            "bands": info["bands"],
            "typical": info["typical"],
            "steps": total_steps,
            "seed": seed,
        }
        save(diffusion, config["model"], Path(output), card | facts)
        reached = ", ".join(f"{key} {value:.3g}" for key, value in facts["validation"].items() if value is not None)
        print(f"{output}/model.safetensors: step {total_steps}; {reached or 'not validated'}")


if __name__ == "__main__":
    main()
