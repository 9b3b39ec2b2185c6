"""A corpus -> reconstruction against compression: one small model a point, all trained alike, one table, one plot.

The baselines are trained alike, too, with as many parameters.

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
    """Residues a node and numbers a residue of "8:16"."""
    factor, _, numbers = text.partition(":")
    if not (factor.isdecimal() and numbers.isdecimal()):
        raise UserError(f"{text} is no point of the curve: give factor:numbers, for example 8:16")
    return int(factor), int(numbers)


def point_options(factor: int, numbers: int, channels: list[int], architecture: str = "ophio") -> list[str]:
    """Model options of one point: k halvings for factor 2^k; scalars and vectors fill the numbers a position leaves."""
    levels = log2(max(factor, 1))
    if factor < 1 or levels % 1 or levels >= len(channels):
        most = 2 ** (len(channels) - 1)
        raise UserError(f"factors={factor}: give powers of two up to {most} (channels has {len(channels)} widths)")
    strides = [2] * int(levels) or [1] * 3  # the control has as many levels as factor 8
    widths = channels[: len(strides) + 1] if levels else [channels[0]] * 4
    latent = max(1, (numbers * factor - 3) // 4)
    sizes = [f"model.strides={strides}", f"model.channels={widths}", f"model.latent_channels={latent}"]
    return [f"model.architecture={architecture}", *sizes]


@pipeline("compression_curve")
def main(
    corpus: str,
    output: str,
    factors: list[int],
    numbers: list[int],
    more: list[str],
    channels: list[int],
    baselines: list[str],
    baseline_points: list[str],
    baseline_channels: list[int],
    options: list[str],
) -> None:
    points = [(factor, count) for factor in factors for count in numbers]
    points += map(parse_point, more)
    models = {f"x{f}_{n}": point_options(f, n, list(channels)) for f, n in sorted(points)}
    for architecture in baselines:
        for f, n in sorted(map(parse_point, baseline_points)):
            models[f"{architecture}_x{f}_{n}"] = point_options(f, n, list(baseline_channels), architecture)
    runs = {str(Path(output) / name): model for name, model in models.items()}
    for run, model in runs.items():
        if not (Path(run) / "model.safetensors").exists():
            print(f"{run}: {' '.join(model)}", flush=True)
            choice = ["experiment=curve", f"data.path={corpus}", f"output={run}", f"name={Path(run).name}"]
            run_script("train_autoencoder.py", [*choice, *model, *options])
    evaluation = [f"corpus={corpus}", f"models=[{','.join(runs)}]", f"output={output}"]
    run_script("reconstruct.py", evaluation)


if __name__ == "__main__":
    main()
