"""A corpus -> reconstruction against compression: one small model a point, all trained alike, one table, one plot.

    python pipelines/compression_curve.py corpus=CORPUS

Reads `corpus`; writes the folder `output`: a run for each point (finished ones are kept, so it can be interrupted), and
what pipelines/reconstruct.py makes of them on the test split. Options: configs/compression_curve.yaml.
"""

import subprocess
import sys
from math import log2
from pathlib import Path

from ophio.config import pipeline
from ophio.errors import UserError

HERE = Path(__file__).parent


def run_script(name: str, options: list[str]) -> None:
    """Another pipeline in a process of its own; where it fails it has said why, and its exit status is ours."""
    status = subprocess.run([sys.executable, HERE / name, *options]).returncode
    if status:
        raise SystemExit(status)


def parse_point(text: str) -> tuple[int, int]:
    """"8:16" -> residues a node, numbers a residue."""
    factor, _, numbers = text.partition(":")
    if not (factor.isdecimal() and numbers.isdecimal()):
        raise UserError(f"more: {text} is no point: give factor:numbers, for example 8:16")
    return int(factor), int(numbers)


def point_options(factor: int, numbers: int, channels: list[int]) -> list[str]:
    """Model options of one point: k halvings for factor 2^k; scalars and vectors fill the numbers a position leaves."""
    levels = log2(max(factor, 1))
    if factor < 1 or not levels.is_integer() or levels >= len(channels):
        most = 2 ** (len(channels) - 1)
        raise UserError(f"factors={factor}: give powers of two up to {most} (channels has {len(channels)} widths)")
    strides = [2] * int(levels) or [1] * 3  # the control has as many levels as factor 8
    widths = channels[: len(strides) + 1] if levels else [channels[0]] * 4
    latent = max(1, (numbers * factor - 3) // 4)
    return [f"model.strides={strides}", f"model.channels={widths}", f"model.latent_channels={latent}"]


@pipeline("compression_curve")
def main(
    corpus: str,
    output: str,
    factors: list[int],
    numbers: list[int],
    more: list[str],
    channels: list[int],
    options: list[str],
) -> None:
    points = [(factor, count) for factor in factors for count in numbers]
    points += map(parse_point, more)
    models = {point: point_options(*point, list(channels)) for point in sorted(points)}
    runs = []
    for (factor, count), model in models.items():
        run = Path(output) / f"x{factor}_{count}"
        runs.append(str(run))
        if not (run / "model.safetensors").exists():
            print(f"{run}: {factor} residues a node, {count} numbers a residue", flush=True)
            choice = ["experiment=curve", f"data.path={corpus}", f"output={run}", f"name={run.name}"]
            choice += model + list(options)
            run_script("train_autoencoder.py", choice)
    evaluation = [f"corpus={corpus}", f"models=[{','.join(runs)}]", f"output={output}"]
    run_script("reconstruct.py", evaluation)


if __name__ == "__main__":
    main()
