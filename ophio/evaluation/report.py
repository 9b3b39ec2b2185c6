"""From records to a report: what the samples are like beside their controls, as JSON, Markdown, CSV and a page.

REPORT/report.json    every number, and which structures failed and why
REPORT/report.md      tables to read
REPORT/index.html     the same tables, and plots
REPORT/table.csv      one small table to keep, also table.md: a row for samples, natives, mirror images, noised
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ophio import __version__
from ophio.evaluation import plots
from ophio.evaluation.comparison import compare_samples
from ophio.evaluation.evaluate import FAILED, NEVER_MADE, Evaluation
from ophio.evaluation.peers import PEER_ENGINE, PEERS
from ophio.evaluation.sets import DESIGNABLE, designability
from ophio.evaluation.structures import GROUPS, NATIVES, SAMPLES, generation_records, read_chain
from ophio.files import write_whole
from ophio.hardware import device_name
from ophio.pages import SHOWN, Entry, document, grid, html_table, paragraph
from ophio.reconstruction import bootstrap_interval
from ophio.tables import markdown, write_csv

SHARES = {  # of all samples, failed ones too
    "designable_mean_distance": lambda record: record["scrmsd_mean_distance"] < DESIGNABLE,
    "codesignable": lambda record: record["codesign_rmsd"] < DESIGNABLE,
    "codesignable_all_atom": lambda record: record["codesign_all_atom_rmsd"] < DESIGNABLE,
}
MEDIANS = ("confidence", "energy", "mpnn_score", "recovery", "codesign_rmsd", "codesign_tm", "codesign_energy")
MEANS = (
    "valid_residues", "clashes_per_100_residues", "chain_breaks", "rama_outliers", "left_handed_helices", "helix",
    "strand", "seconds",
)  # fmt: skip

GROUP_COLUMNS = (
    "group", "structures", "failed", "lengths", "designable", "designable_low", "designable_high", "sctm_above_0.5",
    "sctm_above_0.5_low", "sctm_above_0.5_high", "scrmsd_median", "sctm_median", "designable_mean_distance",
    "codesignable", "codesignable_all_atom", "confidence_median", "energy_median", "codesign_energy_median",
    "recovery_median", "valid_residues", "clashes_per_100_residues", "helix", "strand", "seconds",
)  # fmt: skip
SET_COLUMNS = (
    "mean_tm", "mean_tm_designable", "clusters_50", "clusters_50_designable", "clusters_60",
    "clusters_60_designable", "max_tm_median", "max_tm_designable", "copies", "mmd", "mmd_low", "mmd_high", "mmd_floor",
)  # fmt: skip


def group_row(group: str, records: Sequence[Mapping]) -> dict[str, Any]:
    """What one group of structures is like.

    Shares are of the structures that were evaluated and of those that failed, which count as bad; files that hold no
    structure to evaluate do not count. Intervals: 95 %, bootstrap over structures. Means, and medians but those of
    scRMSD and scTM, leave out what failed.
    """
    made = [record for record in records if "failed" not in record]
    failed = [record for record in records if record.get("kind") in (FAILED, NEVER_MADE)]
    row = {"group": group, "structures": len(made) + len(failed), "failed": len(failed)}
    if not made:
        return row
    shortest, longest = min(record["length"] for record in made), max(record["length"] for record in made)
    row["lengths"] = str(shortest) if shortest == longest else f"{shortest}-{longest}"
    if any("scrmsd" in record for record in made):
        scrmsd, sctm = ([record.get(name) for record in [*made, *failed]] for name in ("scrmsd", "sctm"))
        row |= designability(scrmsd, sctm)
    for name, passes in SHARES.items():
        try:
            passed = np.array([passes(record) for record in made] + [False] * len(failed), dtype=float)
        except KeyError:
            continue  # there is no such score of this protocol, or of structures without a sequence
        low, high = bootstrap_interval(passed)
        row |= {name: float(passed.mean()), f"{name}_low": low, f"{name}_high": high}
    for names, statistic, suffix in ((MEDIANS, np.median, "_median"), (MEANS, np.mean, "")):
        for name in names:
            values = [record[name] for record in made if record.get(name) is not None]
            if values:
                row[f"{name}{suffix}"] = float(statistic(values))
    return {key: None if value == np.inf else value for key, value in row.items() if key not in ("samples", "scored")}


def make_report(
    evaluation: Evaluation, records: Sequence[dict], reference: Path | None = None, viewer_js: str | None = None
) -> dict[str, Any]:
    """Compares the samples as a set, writes all files of the report, and returns the content of report.json.

    Args:
        records: as `Evaluation.fill` returns them.
        reference: what novelty is measured against: a corpus, of which the training split counts, or a folder.
        viewer_js: as for `ophio.pages.grid`.
    """
    sets = compare_samples(evaluation, records, reference)
    report = build(evaluation, records, sets, None if reference is None else reference.absolute().name)
    page = _page(report, draw(evaluation, records), _gallery(evaluation, records, viewer_js))
    write(evaluation.folder, report, page)
    return report


def summary(report: Mapping[str, Any], folder: Path) -> str:
    """The first table, and where the others are."""
    _, note, rows = _scores(report)
    return f"{markdown(rows)}\n\n{note}\nOpen {folder / 'index.html'}; all numbers are in {folder / 'report.json'}"


def build(
    evaluation: Evaluation, records: Sequence[Mapping], sets: Mapping[str, Any], reference: str | None
) -> dict[str, Any]:
    """The content of report.json.

    Args:
        records: of all structures, as `Evaluation.fill` returns them.
        sets: scores of the samples as a set (`ophio.evaluation.comparison`).
        reference: what novelty is measured against.
    """
    groups = {group: [record for record in records if record["group"] == group] for group in GROUPS}
    generated = [r["seconds"] for r in generation_records(evaluation.samples) if "failed" not in r]
    failed = [record for record in records if "failed" in record]
    several = [record["name"] for record in records if record.get("chains", 1) > 1]
    return {
        "ophio": __version__,
        "torch": torch.__version__,
        "hardware": device_name(evaluation.device),
        "protocol": asdict(evaluation.protocol),
        "samples": evaluation.samples.absolute().name,
        "reference": reference,
        "seconds_to_sample": float(np.mean(generated)) if generated else None,
        "groups": [group_row(group, rows) for group, rows in groups.items() if rows],
        "sets": dict(sets),
        "controls": evaluation.controls and evaluation.controls.absolute().name,
        "failed": [{key: record[key] for key in ("group", "name", "kind", "failed")} for record in failed],
        "several_chains": several,
        "not_structures": evaluation.unknown,
    }


def write(folder: Path, report: Mapping[str, Any], page: str) -> None:
    """All files of the report but the records."""
    parts = sections(report)
    blocks = (f"## {title}\n\n{note}\n\n{markdown(rows) if rows else ''}" for title, note, rows in parts)
    text = "\n\n".join(block.rstrip() for block in blocks)
    write_whole(folder / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    write_whole(folder / "report.md", f"# Evaluation of {report['samples']}\n\n{text}\n".encode())
    rows = table(report)
    write_csv(rows, folder / "table.csv")
    write_whole(folder / "table.md", (markdown(rows) + "\n").encode())
    write_whole(folder / "index.html", page.encode())


def draw(evaluation: Evaluation, records: Sequence[Mapping]) -> dict[str, bytes]:
    """The plots by name; none without matplotlib."""
    if not plots.available():
        return {}
    made = {(record["group"], record["name"]) for record in records if "failed" not in record}
    kept = [item for item in evaluation.items if (item.group, item.name) in made]
    shown = {group: [read_chain(item.path) for item in kept if item.group == group] for group in (SAMPLES, NATIVES)}
    groups = {group: [r for r in records if r["group"] == group and "failed" not in r] for group in GROUPS}
    return plots.draw_all(groups, shown)


def table(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each group of structures, with the columns to keep of a report; scores of a set are of the samples."""
    groups, rows = report["groups"], []
    sets = {key: report["sets"].get(key) for key in SET_COLUMNS}
    for group in groups:
        row = {key: group.get(key) for key in GROUP_COLUMNS}
        of_set = group["group"] == SAMPLES
        row |= {key: value if of_set else None for key, value in sets.items()}
        rows.append(row | {"seconds_to_sample": report["seconds_to_sample"] if of_set else None})
    rows = [{key: _rounded(value) for key, value in row.items()} for row in rows]
    return _without_empty(rows)


# Tables to read

Section = tuple[str, str, list[dict[str, Any]]]  # title, a note, rows of a table


def sections(report: Mapping[str, Any]) -> list[Section]:
    """What a reader sees, in order."""
    parts = [_scores(report), _failures(report), _structure(report), _sets(report), _peers(report)]
    return [part for part in parts if part is not None]


def _scores(report: Mapping[str, Any]) -> Section:
    protocol = report["protocol"]
    fast = "not folded; energy of the backbone under the predicted distances" if protocol["fast"] else "each folded"
    sequences = (
        f"ProteinMPNN ({protocol['mpnn_weights']}), {protocol['sequences']} sequences at T={protocol['temperature']}"
    )
    given = [key for key in ("engine_weights", "networks", "starts") if protocol[key] is not None]
    changed = [f"{key} {protocol[key]}" for key in given]
    engine = ", ".join([protocol["engine"], *changed])
    note = f"{sequences}; {engine}, {fast}; on {report['hardware']}."
    note += " Intervals: 95 %, bootstrap over structures."
    if len(report["groups"]) == 1:
        note += " There are no controls."
    elif report["controls"] is None:
        note += " Controls were made of samples; --controls takes natives, which show what the protocol can reach."
    if report["seconds_to_sample"] is not None:
        note += f" Sampling took {report['seconds_to_sample']:.3g} s a sample in each process."
    columns = {
        "scRMSD < 2 Å": "designable", "scTM > 0.5": "sctm_above_0.5", "mean distance < 2 Å": "designable_mean_distance",
        "co-design CA < 2 Å": "codesignable", "co-design all atoms < 2 Å": "codesignable_all_atom",
    }  # fmt: skip
    medians = {
        "scRMSD": "scrmsd", "scTM": "sctm", "confidence": "confidence", "energy": "energy",
        "own energy": "codesign_energy", "own sequence RMSD": "codesign_rmsd", "recovery": "recovery",
    }  # fmt: skip
    rows = []
    for group in report["groups"]:
        row = {
            "": group["group"],
            "n": group["structures"],
            "failed": group["failed"],
            "lengths": group.get("lengths", ""),
        }
        row |= {title: _share(group, key) for title, key in columns.items()}
        row |= {f"{title}, median": _shown(group.get(f"{key}_median", "")) for title, key in medians.items()}
        rows.append(row | {"s each": group.get("seconds", "")})
    return "Self-consistency", note, _without_empty(rows)


def _structure(report: Mapping[str, Any]) -> Section:
    columns = {
        "valid residues": "valid_residues", "clashes/100 residues": "clashes_per_100_residues",
        "chain breaks": "chain_breaks", "Ramachandran outliers": "rama_outliers",
        "left-handed helices": "left_handed_helices", "helix": "helix", "strand": "strand",
    }  # fmt: skip
    rows = [
        {"": row["group"]} | {title: row.get(key, "") for title, key in columns.items()} for row in report["groups"]
    ]
    return "Structure", "Means over structures; breaks and left-handed helices a chain.", rows


def _sets(report: Mapping[str, Any]) -> Section:
    sets = {key: "" if value is None else value for key, value in report["sets"].items()}
    both = {
        "mean TM-score of pairs (lower: more diverse)": "mean_tm",
        "clusters / samples, TM 0.5 (higher: more diverse)": "clusters_50",
        "clusters / samples, TM 0.6 (higher: more diverse)": "clusters_60",
    }
    rows = [{"": title, "all": sets[key], "designable": sets[f"{key}_designable"]} for title, key in both.items()]
    notes = ["Designable: scRMSD below 2 Å."]
    if "compared" in sets:
        rows.append({"": "highest TM-score to the reference: median; mean of designable", "all": sets["max_tm_median"]})
        rows.append({"": "share above 0.9 (copies)", "all": sets["copies"]})
        rows[-2]["designable"] = sets["max_tm_designable"]
        notes.append(f"Reference: {report['reference']}.")
    if "mmd" in sets:
        value, low, high, floor = (_shown(report["sets"][key]) for key in ("mmd", "mmd_low", "mmd_high", "mmd_floor"))
        rows.append({"": "bispectrum MMD², samples against natives", "all": f"{value} [{low}, {high}]"})
        notes.append(f"MMD² of natives against natives: below {floor} in 95 % ({sets['mmd_natives']} natives).")
    return "The samples as a set", " ".join(notes), [row | {"designable": row.get("designable", "")} for row in rows]


def _failures(report: Mapping[str, Any]) -> Section:
    rows = [{"": r["group"], "structure": r["name"], "what": r["kind"], "why": r["failed"]} for r in report["failed"]]
    notes = [
        "Structures that failed, and samples that were never made, count as bad in every share; rejected files hold "
        "nothing that can be evaluated, and do not count."
        if rows
        else "All structures were evaluated."
    ]
    if report["several_chains"]:
        notes.append(f"{len(report['several_chains'])} files have several chains, of which the first was evaluated.")
    if report["not_structures"]:
        notes.append(f"Passed over, no structures: {', '.join(report['not_structures'][:20])}.")
    return "Not evaluated", " ".join(notes), rows


def _peers(report: Mapping[str, Any]) -> Section | None:
    (ours,) = (row for row in report["groups"] if row["group"] == SAMPLES)
    if "designable" not in ours:
        return None
    columns = ("system", "what", "folded by", "scRMSD < 2 Å", "scTM > 0.5", "clusters/samples", "s a sample")
    shares = (_share(ours, "designable"), _share(ours, "sctm_above_0.5"))
    of_sets = (report["sets"].get("clusters_50"), report["seconds_to_sample"])
    lines: list[tuple] = [(report["samples"], ours["lengths"], report["protocol"]["engine"], *shares, *of_sets)]
    lines += [(p.system, p.of, PEER_ENGINE, p.designable, p.folded, p.clusters, p.seconds) for p in PEERS]
    rows = [dict(zip(columns, ("" if value is None else value for value in line), strict=True)) for line in lines]
    note = "Published figures, each under its own protocol, lengths and hardware (arXiv:2310.02508, arXiv:2502.14637)."
    return "Beside other methods", note, rows


def _shown(value: float | str | None) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _share(row: Mapping[str, Any], key: str) -> str:
    return f"{row[key]:.2f} [{row[f'{key}_low']:.2f}, {row[f'{key}_high']:.2f}]" if key in row else ""


def _without_empty(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = [key for key in rows[0] if any(row[key] != "" for row in rows)]
    return [{key: row[key] for key in kept} for row in rows]


def _rounded(value: Any) -> Any:
    if value is None:
        return ""
    return float(f"{value:.4g}") if isinstance(value, float) else value


# The page

TITLES = {
    "scores": "Self-consistency: shares of structures; values beyond the axis are in its last bar",
    "ramachandran": "Ramachandran density",
    "secondary_structure": "Helix and strand content (P-SEA), a point a structure",
    "novelty": "Novelty against self-consistency, a point a sample",
}


def _page(report: Mapping[str, Any], images: Mapping[str, bytes], gallery: str) -> str:
    tables = "".join(
        f"<h2>{html.escape(name)}</h2>{paragraph(note)}{html_table(rows)}" for name, note, rows in sections(report)
    )
    pictures = "".join(_picture(TITLES[name], image) for name, image in images.items())
    if not images:
        pictures = (
            '<p>Plots need matplotlib: <code>pip install "ophio[view]"</code>, then run the same command again.</p>'
        )
    return document(f"Evaluation of {report['samples']}", tables + pictures + gallery)


def _picture(title: str, image: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    return f'<h2>{title}</h2><img class="plot" alt="{title}" src="{source}">'


def _gallery(evaluation: Evaluation, records: Sequence[Mapping], viewer_js: str | None) -> str:
    """The samples themselves, the best first; without a score, by name."""
    made = [record for record in records if record["group"] == SAMPLES and "failed" not in record]
    if not made:
        return ""
    best = sorted(made, key=lambda record: (record.get("scrmsd", np.inf), record["name"]))[:SHOWN]
    path_of = {item.name: item.path for item in evaluation.items if item.group == SAMPLES}
    entries = [Entry(read_chain(path_of[record["name"]]), record["name"], _caption(record)) for record in best]
    title = "The samples, lowest scRMSD first" if "scrmsd" in best[0] else "The samples"
    return f"<h2>{title}</h2>{grid(entries, len(made), viewer_js)}"


def _caption(record: Mapping[str, Any]) -> str:
    scores = {
        "scrmsd": "scRMSD {:.2f} Å",
        "sctm": "scTM {:.2f}",
        "energy": "energy {:.3g}",
        "max_tm": "novelty TM {:.2f}",
    }
    known = [text.format(record[key]) for key, text in scores.items() if record.get(key) is not None]
    return ", ".join([f"{record['length']} residues", *known])
