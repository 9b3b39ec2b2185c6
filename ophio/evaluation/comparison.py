"""The samples of a report as a set: how diverse, how new against a reference, and how like natives close up."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ophio.evaluation.evaluate import REJECTED, Evaluation
from ophio.evaluation.sets import diversity, is_designable, novelty
from ophio.evaluation.structures import (
    NATIVES,
    SAMPLES,
    comparable_traces,
    read_chain,
    reference_traces,
    source_hash,
)
from ophio.files import content_hash, write_whole
from ophio.metrics.bispectrum import bispectrum_mmd
from ophio.metrics.novelty import StructureIndex, max_tm

NOVELTY = "novelty.json"  # in the folder of the report
FEW = 2  # chains that a discrepancy needs


def compare_samples(evaluation: Evaluation, records: Sequence[dict], reference: Path | None) -> dict[str, Any]:
    """Scores of the samples as a set (`ophio.evaluation.sets`, `ophio.metrics.bispectrum`); None for what is undefined.

    `records` of samples get `max_tm` and `nearest`, the most similar structure of `reference` (a corpus, of which the
    training split counts, or a folder of structures). The discrepancy `mmd` is that from the chains that controls come
    from, as far as they have lengths of samples or of native controls.
    """
    samples = [record for record in records if record["group"] == SAMPLES and record.get("kind") != REJECTED]
    paths = {item.name: item.path for item in evaluation.items if item.group == SAMPLES}
    traces = {record["name"]: read_chain(paths[record["name"]]).ca for record in samples if "failed" not in record}
    designable = is_designable([record.get("scrmsd") for record in samples])
    ordered = [traces.get(record["name"]) for record in samples]
    scores: dict[str, Any] = diversity(ordered, designable, seed=evaluation.protocol.seed)
    if reference is not None and traces:
        found = nearest_references(evaluation.folder, {name: paths[name] for name in traces}, reference)
        for record in samples:
            record |= found.get(record["name"], {})
        scores |= novelty([record.get("max_tm") for record in samples], designable)
    scores |= _discrepancy(evaluation, list(traces.values()), records)
    undefined = {key for key, value in scores.items() if isinstance(value, float) and not math.isfinite(value)}
    return {key: None if key in undefined else value for key, value in scores.items()}


def _discrepancy(evaluation: Evaluation, traces: list[Tensor], records: Sequence[dict]) -> dict[str, float]:
    """Bispectrum MMD of CA traces and natives; nothing without natives, or with too few of either."""
    made = [record for record in records if record["group"] in (SAMPLES, NATIVES) and "failed" not in record]
    lengths = [record["length"] for record in made]
    if evaluation.controls is None or len(traces) < FEW:
        return {}
    natives = comparable_traces(evaluation.controls, (min(lengths), max(lengths)), evaluation.origins)
    if len(natives) < FEW:
        return {}
    found = bispectrum_mmd(traces, natives, seed=evaluation.protocol.seed)._asdict()
    mmd = {"mmd": found.pop("squared_mmd")} | {f"mmd_{name}": value for name, value in found.items()}
    return mmd | {"mmd_natives": len(natives)}


def nearest_references(folder: Path, paths: Mapping[str, Path], reference: Path) -> dict[str, dict]:
    """`max_tm` and `nearest` of each file, by name. Those of an earlier run are kept while file and reference last."""
    cache, source = folder / NOVELTY, source_hash(reference)
    content = {name: content_hash(path) for name, path in paths.items()}
    known = _read(cache, source)
    missing = [name for name in paths if known.get(name, {}).get("content") != content[name]]
    if missing:
        traces, names = reference_traces(reference)
        found = max_tm([read_chain(paths[name]).ca for name in missing], StructureIndex.of(traces))
        for name, score, place in zip(missing, found.tm_score.tolist(), found.reference.tolist(), strict=True):
            known[name] = {"content": content[name], "max_tm": round(score, 4), "nearest": names[place]}
        write_whole(cache, (json.dumps({"reference": source, "samples": known}) + "\n").encode())
    return {name: {key: known[name][key] for key in ("max_tm", "nearest")} for name in paths}


def _read(cache: Path, source: str) -> dict[str, dict]:
    try:
        stored = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return stored["samples"] if stored.get("reference") == source else {}
