"""From a folder of structures to a report: scores, controls, bad input, resuming, the command and the pipeline.

Folding is real where its result matters to a test; other tests put engines in its place whose answers are known.
"""

import json
import math
import runpy
import sys
from pathlib import Path

import adk
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from ophio.cli import main
from ophio.constants import CA
from ophio.errors import UserError
from ophio.evaluation import evaluate, plots
from ophio.evaluation.folding import Fold, load_engine
from ophio.evaluation.inverse_folding import Designed, ProteinMPNN
from ophio.evaluation.report import make_report
from ophio.evaluation.self_consistency import Protocol, own_sequence, self_consistency
from ophio.evaluation.structures import choose_natives, mirrored, noised, structure_files, write_controls
from ophio.geometry import kabsch, transform
from ophio.io import read_structure, write_structure
from ophio.metrics import ca_rmsd, is_mirrored
from ophio.protein import Protein

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = ["--networks", "1", "--sequences", "2", "--lengths", "24-200"]


def piece(start: int, length: int) -> Protein:
    return adk.read(adk.OPEN)[1].crop(start, start + length).center()


@pytest.fixture(scope="module")
def natives(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("natives")
    for k in range(6):
        write_structure(piece(25 * k, 26 + k), folder / f"native_{k}.pdb")
    return folder


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    """A piece of adenylate kinase, another as poly-glycine, and what a user may leave in a folder."""
    folder = tmp_path_factory.mktemp("samples")
    write_structure(piece(0, 28), folder / "a.pdb")
    write_structure(piece(100, 26).backbone(), folder / "b.cif")
    write_structure(piece(0, 12), folder / "short.pdb")
    whole = adk.read(adk.OPEN)[1]
    write_structure(Protein(**{k: torch.cat([v] * 3)[:600] for k, v in _tensors(whole).items()}), folder / "long.pdb")
    trace = piece(30, 30)
    only_ca = torch.zeros_like(trace.atom_mask)
    only_ca[:, CA] = True
    write_structure(trace.replace(atom_mask=only_ca), folder / "trace.pdb")
    gap = piece(60, 30)
    without_o = gap.atom_mask.clone()
    without_o[7, 3] = False
    write_structure(gap.replace(atom_mask=without_o), folder / "incomplete.pdb")
    (folder / "notes.pdb").write_text("REMARK no atoms\n")
    (folder / "readme.txt").write_text("not a structure\n")
    made = {"name": "a", "file": "a.pdb", "seconds": 0.5, "length": 28}
    given_up = {"name": "sample_9", "failed": "diverged in 5 attempts", "length": 30, "seconds": 2.0}
    (folder / "samples.jsonl").write_text(f"{json.dumps(made)}\n{json.dumps(given_up)}\n")
    return folder


def _tensors(protein: Protein) -> dict[str, torch.Tensor]:
    names = ("positions", "atom_mask", "residue_type", "residue_number", "insertion_code", "b_factor")
    tensors = {name: getattr(protein, name) for name in names}
    return tensors | {"residue_number": torch.arange(1, protein.num_residues + 1)}


@pytest.fixture(scope="module")
def report(samples, natives, tmp_path_factory) -> Path:
    """Made by the command, with real inverse folding and folding."""
    folder = tmp_path_factory.mktemp("report") / "out"
    options = ["--controls", str(natives), "--reference", str(natives), "--num-controls", "1", *QUICK]
    assert main(["evaluate", str(samples), "--out", str(folder), *options]) == 2
    return folder


def again(samples, natives, report, *options) -> int:
    same = ["--controls", str(natives), "--reference", str(natives), "--num-controls", "1", *QUICK]
    return main(["evaluate", str(samples), "--out", str(report), *same, *options])


def records_of(folder: Path) -> dict[tuple[str, str], dict]:
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return {(record["group"], record["name"]): record for record in records}


# scores of one structure


class Copies(ProteinMPNN):
    """Designs sequences that differ in their first residue alone."""

    def __init__(self):
        pass

    def design(self, proteins, num_sequences, temperature, seeds):
        tail = proteins[0].sequence[1:]
        return [[Designed(letter + tail, k / 10, 0.5) for k, letter in enumerate("ACDEFGHI"[:num_sequences])]]

    def score(self, proteins):
        return [1.5]


class Shifts:
    """Folds a sequence to the chain that it was designed for, its last residue `distance` of its first letter away."""

    name, all_atom = "shifts", True

    def __init__(self, protein, distances):
        self.protein, self.distances = protein, distances

    def fold(self, sequences, seed=0):
        return [self._fold(self.distances[sequence[0]]) for sequence in sequences]

    def _fold(self, distance):
        positions = self.protein.positions.clone()
        positions[-1] += torch.tensor([distance, 0.0, 0.0])
        rotation = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        moved = self.protein.with_positions(positions).rotate(rotation)
        return Fold(moved.with_positions(moved.positions + 7.0), torch.full((len(positions),), 1 / (1 + distance)), 0.0)

    def energy(self, sequences, proteins):
        return [-float("ACDEFGHIKLM".index(sequence[0])) for sequence in sequences]


def test_scores_are_those_of_the_closest_fold_and_conventions_stay_apart():
    protein = piece(0, 40)
    assert protein.sequence[0] == "M"
    engine = Shifts(protein, {"A": 30.0, "C": 3.0, "D": 12.0, "M": 0.5})
    record = self_consistency(protein, Copies(), engine, Protocol(sequences=3))
    folds = engine.fold(record["sequences"])
    rmsds = [float(ca_rmsd(fold.protein.positions, protein.positions, protein.atom_mask)) for fold in folds]
    assert record["rmsds"] == pytest.approx(rmsds, abs=1e-4)
    assert record["scrmsd"] == min(record["rmsds"]) == record["rmsds"][1] > 0.3
    placed = transform(folds[1].protein.ca, *kabsch(folds[1].protein.ca, protein.ca))
    assert record["scrmsd_mean_distance"] == pytest.approx(float((placed - protein.ca).norm(dim=-1).mean()), abs=1e-4)
    assert record["scrmsd_mean_distance"] < record["scrmsd"]
    assert record["sctm"] == max(record["tms"]) and 0.95 < record["sctm"] < 1
    assert record["confidence"] == 0.25 and record["energy"] == -1.0 and record["mpnn_score"] == 0.1
    assert record["own_sequence"] == protein.sequence and record["codesign_mpnn_score"] == 1.5
    assert 0 < record["codesign_rmsd"] < record["codesign_all_atom_rmsd"] + 0.1 < 0.3
    assert record["codesign_tm"] > record["sctm"] and record["recovery"] == 0.5


def test_the_fast_mode_folds_nothing():
    protein = piece(0, 40)
    engine = Shifts(protein, {})  # would raise on any fold
    record = self_consistency(protein, Copies(), engine, Protocol(sequences=3, fast=True))
    assert record["energies"] == [0.0, -1.0, -2.0] and record["energy"] == -2.0 and record["mpnn_score"] == 0.2
    assert record["codesign_energy"] == -10.0 and "scrmsd" not in record


def test_a_backbone_has_no_sequence_of_its_own():
    protein = piece(0, 30)
    assert own_sequence(protein) == protein.sequence and own_sequence(protein.backbone()) is None
    engine = Shifts(protein.backbone(), {"A": 1.0})
    record = self_consistency(protein.backbone(), Copies(), engine, Protocol(sequences=1))
    assert not any(key.startswith(("codesign", "own", "recovery")) for key in record)


def test_a_fold_that_is_not_finite_is_refused():
    protein = piece(0, 30)
    engine = Shifts(protein, {"A": math.nan, "M": 0.0})
    with pytest.raises(UserError, match="not finite"):
        self_consistency(protein, Copies(), engine, Protocol(sequences=1))


@pytest.mark.parametrize("options", [{"sequences": 0}, {"temperature": -1.0}, {"temperature": 3.0}])
def test_protocols_without_a_meaning_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Protocol(**options)


# controls


def test_a_mirror_image_is_one_and_noise_is_as_large_as_it_says():
    protein = piece(0, 100)
    mirror = mirrored(protein)
    assert is_mirrored(mirror.positions, protein.positions, protein.atom_mask)
    moved = (noised(protein, 0).positions - protein.positions)[protein.atom_mask]
    assert moved.std() == pytest.approx(1.5, rel=0.05) and abs(moved.mean()) < 0.1
    assert (noised(protein, 0).positions[~protein.atom_mask] == 0).all()
    assert not torch.equal(noised(protein, 0).positions, noised(protein, 1).positions)


def test_natives_are_complete_and_of_the_lengths_asked_for(natives):
    chosen = choose_natives(natives, 10, (27, 29))
    assert sorted(chain.num_residues for chain in chosen) == [27, 28, 29]
    few = choose_natives(natives, 2, (20, 40), seed=3)
    assert [chain.name for chain in few] == [chain.name for chain in choose_natives(natives, 3, (20, 40), seed=3)[:2]]
    with pytest.raises(UserError, match="no complete chain of 300 to 400 residues"):
        choose_natives(natives, 2, (300, 400))


def test_controls_are_files_to_look_at(tmp_path):
    items = write_controls(tmp_path, [piece(0, 30)], natives=True, seed=0)
    assert [item.group for item in items] == ["natives", "mirrors", "noised"]
    native, mirror, noisy = (read_structure(item.path) for item in items)
    torch.testing.assert_close(native.ca * torch.tensor([-1.0, 1.0, 1.0]), mirror.ca, atol=2e-3, rtol=0)
    assert (native.ca - noisy.ca).abs().max() > 1 and native.sequence == mirror.sequence == noisy.sequence
    assert {item.group for item in write_controls(tmp_path, [piece(0, 30)], natives=False, seed=0)} == {
        "mirrors",
        "noised",
    }


# the report


def test_every_structure_has_a_record(report):
    records = records_of(report)
    expected = {("samples", "a.pdb"), ("samples", "b.cif")}
    controls = {key for key in records if key[0] != "samples"}
    assert expected | controls == records.keys() and {key[0] for key in controls} == {"natives", "mirrors", "noised"}
    for record in records.values():
        assert "failed" not in record
        assert record["scrmsd"] == min(record["rmsds"]) >= record["scrmsd_mean_distance"]
        assert record["sctm"] == max(record["tms"]) and len(record["sequences"]) == 2
        assert len(record["residue_confidence"]) == record["length"] and 0 <= record["confidence"] <= 1
        assert record["seconds"] > 0 and {"valid_residues", "helix", "strand", "clashes"} <= record.keys()
    assert records["samples", "a.pdb"]["codesign_rmsd"] > 0 and "codesign_rmsd" not in records["samples", "b.cif"]


def test_a_native_fits_its_prediction_better_than_its_mirror_image_and_noise(report):
    records = {group: record for (group, _), record in records_of(report).items() if group != "samples"}
    assert records["natives"]["energy"] < min(records["noised"]["energy"], records["mirrors"]["energy"])


def test_bad_input_is_named_with_its_reason_and_the_others_are_done(samples, natives, report, capsys):
    assert again(samples, natives, report) == 2
    complaints = capsys.readouterr().err
    reasons = {
        "short.pdb": "12 residues; chains of 24 to 200 residues are evaluated (--lengths)",
        "long.pdb": "600 residues; chains of 24 to 200 residues are evaluated (--lengths)",
        "trace.pdb": "only CA atoms",
        "incomplete.pdb": "residue 68 lacks backbone atoms (1 such residues)",
        "notes.pdb": "no atoms found in PDB format",
    }
    failed = {failure["name"]: failure for failure in json.loads((report / "report.json").read_text())["failed"]}
    for name, reason in reasons.items():
        assert f"{samples / name}: " in complaints and reason in complaints
        assert reason in failed[name]["failed"] and failed[name]["kind"] == "rejected"
        assert name in (report / "report.md").read_text() and name in (report / "index.html").read_text()
    assert failed["sample_9"] == {
        "group": "samples",
        "name": "sample_9",
        "kind": "never made",
        "failed": "diverged in 5 attempts",
    }
    assert failed.keys() == reasons.keys() | {"sample_9"}
    assert "readme.txt" in (report / "report.md").read_text()


def test_the_report_says_what_the_records_say(report):
    content = json.loads((report / "report.json").read_text())
    rows, records = {row["group"]: row for row in content["groups"]}, records_of(report)
    assert list(rows) == ["samples", "natives", "mirrors", "noised"]
    made = [record for (group, _), record in records.items() if group == "samples"]
    assert (
        rows["samples"]["structures"] == 3 and rows["samples"]["failed"] == 1
    )  # the sample that was never made counts
    assert rows["samples"]["designable"] == pytest.approx(sum(r["scrmsd"] < 2 for r in made) / 3)
    assert rows["samples"]["sctm_above_0.5"] == pytest.approx(sum(r["sctm"] > 0.5 for r in made) / 3)
    assert rows["samples"]["scrmsd_median"] == pytest.approx(max(r["scrmsd"] for r in made))
    assert rows["samples"]["energy_median"] == pytest.approx(sum(r["energy"] for r in made) / 2)
    (native,) = (record for (group, _), record in records.items() if group == "natives")
    assert rows["natives"]["scrmsd_median"] == native["scrmsd"] and rows["natives"]["helix"] == native["helix"]
    assert content["protocol"]["engine"] == "trrosetta" and content["seconds_to_sample"] == 0.5
    sets = content["sets"]
    assert sets["compared"] == 2 and sets["max_tm_median"] > 0.3 and sets["clusters_50"] == pytest.approx(2 / 3)
    assert math.isfinite(sets["mmd"]) and sets["mmd_natives"] == 3


def test_tables_and_page_are_complete(report):
    text, page = (report / "report.md").read_text(), (report / "index.html").read_text()
    for title in ("Self-consistency", "Not evaluated", "Structure", "The samples as a set", "Beside other methods"):
        assert f"## {title}" in text and f"<h2>{title}</h2>" in page
    assert "RFdiffusion" in text and "trrosetta" in text
    assert page.count("data:image/png;base64,") == (3 if plots.available() else 0) + plots.available()
    lines = (report / "table.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[0].startswith("group,structures,failed,lengths,designable,designable_low")
    assert len((report / "table.md").read_text().splitlines()) == 6


def test_without_matplotlib_the_page_says_how_to_get_plots(samples, natives, report, monkeypatch):
    before = (report / "index.html").read_bytes()
    monkeypatch.setattr(plots, "available", lambda: False)
    again(samples, natives, report)
    page = (report / "index.html").read_text()
    assert "ophio[view]" in page and "data:image" not in page and "<h2>Structure</h2>" in page
    (report / "index.html").write_bytes(before)


# going on


def never(job):
    raise AssertionError(f"{job.item} evaluated again")


def test_what_is_there_is_kept(samples, natives, report, monkeypatch):
    before = (report / "records.jsonl").read_bytes()
    monkeypatch.setattr(evaluate, "evaluate_item", never)
    assert again(samples, natives, report) == 2
    assert (report / "records.jsonl").read_bytes() == before


@pytest.fixture
def few(tmp_path) -> tuple[Path, Path]:
    folder = tmp_path / "few"
    folder.mkdir()
    for k in range(4):
        write_structure(piece(30 * k, 26), folder / f"{k}.pdb")
    return folder, tmp_path / "out"


@pytest.fixture
def stub(monkeypatch) -> list[str]:
    """Stands for the scores, which cost time; lists what was evaluated."""
    called = []

    def scored(protein, designer, engine, protocol):
        called.append(protein.name)
        return {"energy": -1.0, "sequences": ["A"]}

    monkeypatch.setattr(evaluate, "self_consistency", scored)
    monkeypatch.setattr(evaluate, "_load", lambda protocol, device: (None, None))
    return called


def fill(folders, **options) -> list[dict]:
    protocol = Protocol(fast=True, seed=options.pop("seed", 0))
    return evaluate.prepare(*folders, protocol, num_controls=0, **options).fill()


def test_only_what_is_missing_damaged_or_changed_is_done_again(few, stub):
    fill(few)
    assert stub == ["0", "1", "2", "3"]
    file = few[1] / "records.jsonl"
    lines = file.read_text().splitlines()
    file.unlink()
    (few[1] / "records.jsonl.part7").write_text(f"{lines[0]}\n{lines[1]}\n{lines[2][:50]}")  # as a crash leaves it
    write_structure(piece(0, 27), few[0] / "1.pdb")
    stub.clear()
    records = fill(few)
    assert stub == ["1", "2", "3"] and [record["name"] for record in records] == ["0.pdb", "1.pdb", "2.pdb", "3.pdb"]
    assert [record["length"] for record in records] == [26, 27, 26, 26]
    assert len(file.read_text().splitlines()) == 4 and not list(few[1].glob("*.part*"))


def test_an_interruption_loses_no_record(few, stub, monkeypatch):
    real = evaluate.self_consistency

    def interrupted(protein, *others):
        if protein.name == "2":
            raise KeyboardInterrupt
        return real(protein, *others)

    monkeypatch.setattr(evaluate, "self_consistency", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(few)
    assert set(records_of(few[1])) == {("samples", "0.pdb"), ("samples", "1.pdb")}
    monkeypatch.setattr(evaluate, "self_consistency", real)
    stub.clear()
    assert len(fill(few)) == 4 and stub == ["2", "3"]


def test_a_failure_is_a_record_and_tried_again(few, stub, monkeypatch):
    def fails(protein, *others):
        raise ZeroDivisionError("singular") if protein.name == "1" else UserError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "self_consistency", fails)
        failed = fill(few)
    assert [record["failed"] for record in failed[:2]] == ["no luck", "ZeroDivisionError: singular"]
    assert {record["kind"] for record in failed} == {"failed"} and failed[0]["length"] == 26
    assert all("failed" not in record for record in fill(few)) and len(stub) == 4


def test_a_report_of_failures_alone_can_be_read(few, stub, monkeypatch):
    def fails(protein, *others):
        raise UserError("no luck")

    monkeypatch.setattr(evaluate, "self_consistency", fails)
    evaluation = evaluate.prepare(*few, Protocol(), num_controls=1)
    (samples, *controls) = make_report(evaluation, evaluation.fill(), reference=few[0])["groups"]
    assert samples["structures"] == samples["failed"] == 4 and len(controls) == 2
    text = (few[1] / "report.md").read_text()
    assert text.count("no luck") == 6 and (few[1] / "index.html").exists() and (few[1] / "table.csv").exists()


def test_more_samples_are_added(few, stub):
    assert len(fill(few, num=2)) == 2
    assert len(fill(few, num=3)) == 3 and stub == ["0", "1", "2"]


def test_another_protocol_needs_another_folder(few, stub):
    fill(few)
    with pytest.raises(UserError, match="holds scores made otherwise .seed 0 there, 1 now"):
        fill(few, seed=1)


def test_processes_share_the_work(few):
    """Real ones, with the real networks."""
    protocol = Protocol(sequences=1, fast=True, networks=1)
    found = evaluate.prepare(*few, protocol, num=2, num_controls=0).fill(num_workers=2)
    assert [record["name"] for record in found] == ["0.pdb", "1.pdb"] and all(r["energy"] < 0 for r in found)
    alone = self_consistency(
        read_structure(few[0] / "0.pdb"), ProteinMPNN(), load_engine("trrosetta", networks=1), protocol
    )
    assert found[0]["sequences"] == alone["sequences"] and found[0]["energy"] == pytest.approx(
        alone["energy"], abs=0.05
    )


# options


def test_files_of_a_folder(samples, tmp_path):
    structures, others = structure_files(samples)
    assert [path.name for path in others] == ["readme.txt"] and len(structures) == 7
    with pytest.raises(UserError, match="no structure in this folder"):
        structure_files(tmp_path)
    with pytest.raises(UserError, match="not a folder that can be read"):
        structure_files(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--num", "0"], "num=0"),
        (["--sequences", "0"], "sequences 0"),
        (["--lengths", "50-40"], "lengths 50-40"),
        (["--lengths", "x"], "length x"),
        (["--lengths", "150-200"], "none of 4 samples can be evaluated; the first: 26 residues"),
        (["--num-controls", "-1"], "controls -1"),
        (["--controls", "nowhere"], "nowhere: not a folder"),
        (["--workers", "0"], "workers 0"),
        (["--device", "tpu"], "--device tpu"),
        (["--networks", "9"], "networks 9"),
    ],
)
def test_bad_options_are_named(few, capsys, options, said):
    assert main(["evaluate", str(few[0]), "--out", str(few[1]), "--fast", *options]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (few[1] / "records.jsonl").exists()


def test_the_report_goes_elsewhere_than_the_samples(few, capsys):
    assert main(["evaluate", str(few[0]), "--out", str(few[0])]) == 2
    assert "give another folder for the report" in capsys.readouterr().err


def test_the_pipeline_makes_the_same_report(samples, natives, report, monkeypatch, capsys):
    before = (report / "report.json").read_bytes()
    script = ROOT / "pipelines" / "evaluate.py"
    options = [
        f"samples={samples}",
        f"output={report}",
        f"controls={natives}",
        f"reference={natives}",
        "num_controls=1",
    ]
    options += ["networks=1", "sequences=2", "lengths=24-200"]
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    monkeypatch.setattr(evaluate, "evaluate_item", never)
    try:
        runpy.run_path(str(script))["main"]()
    finally:
        GlobalHydra.instance().clear()
    said = capsys.readouterr()
    assert "scRMSD < 2 Å" in said.out and "short.pdb: 12 residues" in said.err
    assert (report / "report.json").read_bytes() == before
