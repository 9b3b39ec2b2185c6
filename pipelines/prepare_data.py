"""Structure files or .npz archives -> a corpus for training.

    python pipelines/prepare_data.py input=DIR_OR_NPZ output=CORPUS

Reads `input`; writes the folder `output`: shards, index.arrow, corpus.json, and rejected.csv with the reason for every
chain that was left out. Options: configs/prepare_data.yaml.
"""

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ophio.data import Settings, prepare
from ophio.errors import UserError


def run(config: DictConfig) -> None:
    chosen = OmegaConf.masked_copy(config, ["filters", "folder", "crop_length"])
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), chosen))
    inputs = [config.input] if isinstance(config.input, str) else config.input
    workers = config.num_workers or os.cpu_count()
    info = prepare([Path(path) for path in inputs], Path(config.output), settings, workers, config.overwrite)
    print(f"{config.output}: {info['entries']:,} entries, {info['residues']:,} residues: {info['splits']}")
    print(f"rejected: {sum(info['rejected'].values()):,} {info['rejected']}, listed in {config.output}/rejected.csv")


@hydra.main(version_base="1.3", config_path="../configs", config_name="prepare_data")
def main(config: DictConfig) -> None:
    try:
        run(config)
    except (UserError, OmegaConfBaseException) as error:
        print(f"prepare_data: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
