"""A diffusion model -> a folder of new proteins, on as many devices as there are.

    python pipelines/sample.py num=1000 length=50-128 output=SAMPLES devices=2

Reads `weights` (released, or a folder that training wrote); writes `output` as `ophio sample` does. Every process makes
every n-th batch and writes its own files; samples that are there are kept. Options: configs/sample.yaml.
"""

from pathlib import Path

from lightning.fabric import Fabric

from ophio.config import pipeline
from ophio.evaluation.structures import files_of
from ophio.samples import collect, prepare, summary


@pipeline("sample")
def main(
    weights: str,
    num: int,
    length: str | int | None,
    output: str,
    seed: int,
    start: str | list[str] | None,
    start_sigma: float | None,
    sampler: str | None,
    steps: int | None,
    noise_scale: float | None,
    drafts: int | None,
    helix: float | None,
    strand: float | None,
    compactness: float | None,
    origin: str | None,
    guidance: float,
    idealize: bool | None,
    hold_torsions: bool | None,
    batch_size: int | None,
    accelerator: str,
    devices: int,
) -> None:
    asked = {"sampler": sampler, "steps": steps, "noise_scale": noise_scale, "drafts": drafts}
    asked |= {"helix": helix, "strand": strand, "compactness": compactness, "origin": origin}
    asked |= {"guidance": guidance, "idealize": idealize, "hold_torsions": hold_torsions, "start_sigma": start_sigma}
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    run = prepare(weights, num, length, seed, Path(output), asked, files_of(start))
    fabric.barrier()  # before anything is written, all have seen what was there
    run.to(fabric.device).fill(batch_size, fabric.global_rank, fabric.world_size)
    fabric.barrier()
    if fabric.is_global_zero:
        print(summary(collect(Path(output), run.items), Path(output)))


if __name__ == "__main__":
    main()
