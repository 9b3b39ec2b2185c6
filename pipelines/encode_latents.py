"""A corpus and a trained autoencoder -> the latents of its chains, encoded once for the training of a diffusion model.

    python pipelines/encode_latents.py autoencoder=mini_latent corpus=CORPUS output=LATENTS

Reads `autoencoder` (a released model or a folder that training wrote) and `corpus` (made by pipelines/prepare_data.py);
writes `output`/SPLIT.safetensors and latents.json, with the statistics that standardise latents. Latents that are there
already are kept; those of another autoencoder, corpus or choice of chains are refused. Structures in the folders
`samples`, which pipelines/select_samples.py chose, are learned from, too. Options: configs/encode_latents.yaml.
"""

from pathlib import Path

from ophio.config import pipeline
from ophio.data.corpus import Corpus, read_info
from ophio.data.latents import INDEX, check_fresh, encode_corpus, encode_samples, write_latents
from ophio.errors import UserError
from ophio.evaluation.structures import LONGEST, files_of, read_backbone
from ophio.files import contents_hash
from ophio.latents import encoder_fingerprint
from ophio.pretrained import load


@pipeline("encode_latents")
def main(
    autoencoder: str,
    corpus: str,
    output: str,
    splits: list[str],
    min_length: int,
    max_length: int | None,
    samples: str | list[str] | None,
    samples_share: float,
    device: str,
) -> None:
    if not 0 < samples_share < 1:
        raise UserError(f"samples_share={samples_share}: give a share between 0 and 1")
    model, folder = load(autoencoder).to(device), Path(output)
    files = files_of(samples)
    limits = (min_length, LONGEST if max_length is None else max_length)
    source = {
        "autoencoder": encoder_fingerprint(model),
        "corpus": read_info(Path(corpus))["hash"],
        "corpus_name": Path(corpus).name,
        "chains": [min_length, max_length],
        "samples": {"share": samples_share, "hash": contents_hash(files)} if files else None,
    }
    if (folder / INDEX).exists():
        check_fresh(folder, source)
        print(f"{output}: encoded already, nothing to do")
        return
    parts = {split: Corpus(corpus, split, min_length, max_length) for split in splits}
    proteins = [read_backbone(file, limits) for file in files]  # before the long work: a bad file is named at once
    encoded = {split: encode_corpus(model, part) for split, part in parts.items()}
    own = encode_samples(model, proteins) if files else None
    info = write_latents(folder, source, encoded, own, samples_share)
    print(f"{output}: {info['splits']} chains; 10-50-90 % bands {info['bands']}")


if __name__ == "__main__":
    main()
