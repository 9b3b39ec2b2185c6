"""Structure files or .npz archives -> a corpus for training.

    python pipelines/prepare_data.py input=DIR_OR_NPZ output=CORPUS

Reads `input`; writes the folder `output`: shards, index.arrow, corpus.json, and rejected.csv with the reason for every
chain that was left out. Options: configs/prepare_data.yaml.
"""

import os
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from ophio.config import pipeline
from ophio.data import Settings, prepare


@pipeline("prepare_data")
def main(
    input: str | list[str],
    output: str,
    overwrite: bool,
    num_workers: int | None,
    crop_length: int | None,
    filters: DictConfig,
    folder: DictConfig,
) -> None:
    chosen = {"filters": filters, "folder": folder, "crop_length": crop_length}
    settings = cast(Settings, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), chosen)))
    inputs = [Path(str(path)) for path in ([input] if isinstance(input, str) else input)]
    workers = (os.cpu_count() or 1) if num_workers is None else num_workers
    info = prepare(inputs, Path(output), settings, workers, overwrite)
    print(f"{output}: {info['entries']:,} entries, {info['residues']:,} residues: {info['splits']}")
    print(f"rejected: {sum(info['rejected'].values()):,} {info['rejected']}, listed in {output}/rejected.csv")


if __name__ == "__main__":
    main()
