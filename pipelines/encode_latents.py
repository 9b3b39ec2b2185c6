"""A corpus and a trained autoencoder -> the latents of its chains, encoded once for the training of a diffusion model.

    python pipelines/encode_latents.py autoencoder=mini_latent corpus=CORPUS output=LATENTS

Reads `autoencoder` (a released model or a folder that training wrote) and `corpus` (made by pipelines/prepare_data.py);
writes `output`/SPLIT.safetensors and latents.json, with the statistics that standardise latents. Latents that are there
already are kept; those of another autoencoder, corpus or choice of chains are refused. Options: configs/encode_latents.yaml.
"""

from pathlib import Path

from ophio.config import pipeline
from ophio.data.corpus import Corpus, read_info
from ophio.data.latents import INDEX, check_fresh, encode_corpus, write_latents
from ophio.latents import encoder_fingerprint
from ophio.pretrained import load


@pipeline("encode_latents")
def main(
    autoencoder: str, corpus: str, output: str, splits: list[str], min_length: int, max_length: int | None, device: str
) -> None:
    model, folder = load(autoencoder).to(device), Path(output)
    source = {
        "autoencoder": encoder_fingerprint(model),
        "corpus": read_info(Path(corpus))["hash"],
        "corpus_name": Path(corpus).name,
        "chains": [min_length, max_length],
    }
    if (folder / INDEX).exists():
        check_fresh(folder, source)
        print(f"{output}: encoded already, nothing to do")
        return
    chosen = {split: Corpus(corpus, split, min_length, max_length) for split in splits}
    info = write_latents(folder, source, {split: encode_corpus(model, part) for split, part in chosen.items()})
    print(f"{output}: {info['splits']} chains; 10-50-90 % bands {info['bands']}")


if __name__ == "__main__":
    main()
