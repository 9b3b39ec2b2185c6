"""A folder of samples -> a report of how designable, diverse and new they are, beside controls.

    python pipelines/evaluate.py samples=SAMPLES controls=CORPUS reference=CORPUS output=REPORT num_workers=8

Reads `samples` (made by pipelines/sample.py, or any folder of structure files), `controls` and `reference` (corpora
made by pipelines/prepare_data.py, or folders of structure files); writes `output` as `ophio evaluate` does, and goes on
after an interruption. Options: configs/evaluate.yaml.
"""

import sys
from pathlib import Path

from ophio.config import pipeline
from ophio.evaluation.evaluate import complaint, prepare
from ophio.evaluation.report import make_report, summary
from ophio.evaluation.self_consistency import Protocol
from ophio.samples import length_range


@pipeline("evaluate")
def main(
    samples: str,
    output: str,
    num: int | None,
    fast: bool,
    sequences: int | None,
    temperature: float,
    mpnn_weights: str,
    engine: str,
    engine_weights: str | None,
    networks: int | None,
    starts: int | None,
    lengths: str,
    controls: str | None,
    num_controls: int,
    origins: list[str],
    reference: str | None,
    seed: int,
    num_workers: int,
    device: str,
) -> None:
    count = (3 if fast else 8) if sequences is None else sequences
    protocol = Protocol(count, temperature, mpnn_weights, engine, engine_weights, networks, starts, fast, seed)
    natives = None if controls is None else Path(controls)
    evaluation = prepare(
        Path(samples), Path(output), protocol, num, length_range(lengths), natives, num_controls, list(origins), device
    )
    report = make_report(evaluation, evaluation.fill(num_workers), None if reference is None else Path(reference))
    print(summary(report, Path(output)))
    for record in report["failed"]:
        print(complaint(record, Path(samples)), file=sys.stderr)


if __name__ == "__main__":
    main()
