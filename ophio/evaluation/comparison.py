"""The samples of a report as a set: how diverse, how new against a reference, and how like natives close up."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ophio.evaluation.evaluate import REJECTED, Evaluation
from ophio.evaluation.sets import diversity, is_designable, novelty
from ophio.evaluation.structures import NATIVES, SAMPLES, comparable_traces, content_hash, read_chain, reference_traces, source_hash
from ophio.files import write_whole
from ophio.metrics.bispectrum import bispectrum_mmd
from ophio.metrics.novelty import StructureIndex, max_tm

NOVELTY = "novelty.json"  # in the folder of the report
FEW = 2  # chains that a discrepancy needs


def compare_samples(evaluation: Evaluation, records: Sequence[dict], reference: Path | None) -> dict[str, Any]:
    """Scores of the samples as a set, see `ophio.evaluation.sets` and `ophio.metrics.bispectrum`; None for what is undefined.

    `records` of samples get `max_tm` and `nearest`, the most similar structure of `reference` (a corpus, of which the training
    split counts, or a folder of structures). The discrepancy `mmd` is measured against the chains that controls come from, as far
    as they have lengths of samples or of native controls.
    """
    samples = [record for record in records if record["group"] == SAMPLES and record.get("kind") != REJECTED]
    paths = {item.name: item.path for item in evaluation.items if item.group == SAMPLES}
    traces = [None if "failed" in record else read_chain(paths[record["name"]]).ca for record in samples]
    present = [trace for trace in traces if trace is not None]
    designable = is_designable([record.get("scrmsd") for record in samples])
    scores: dict[str, Any] = diversity(traces, designable, seed=evaluation.protocol.seed)
    if reference is not None and present:
        found = nearest_references(evaluation.folder, {r["name"]: paths[r["name"]] for r in samples if "failed" not in r}, reference)
        for record in samples:
            record |= found.get(record["name"], {})
        scores |= novelty([record.get("max_tm") for record in samples], designable)
    if evaluation.controls is not None and len(present) >= FEW:
        lengths = [record["length"] for record in records if record["group"] in (SAMPLES, NATIVES) and "failed" not in record]
        natives = comparable_traces(evaluation.controls, (min(lengths), max(lengths)), evaluation.origins)
        if len(natives) >= FEW:
            found = bispectrum_mmd(present, natives, seed=evaluation.protocol.seed)
            scores |= {f"mmd_{name}" if name != "squared_mmd" else "mmd": value for name, value in found._asdict().items()}
            scores["mmd_natives"] = len(natives)
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in scores.items()}


def nearest_references(folder: Path, paths: Mapping[str, Path], reference: Path) -> dict[str, dict]:
    """`max_tm` and `nearest` of each file, by name; those of an earlier run are kept while file and reference are the same."""
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
