"""A folder of generated proteins: what will be in it, filling it, going on after an interruption.

    SAMPLES/sample_00001.pdb ...   all atoms of one protein each
    SAMPLES/samples.jsonl          one line a sample: sequence, seed, length, seconds, validity; failed ones too
    SAMPLES/samples.fasta          the sequences
    SAMPLES/index.html             the first of them to look at
    SAMPLES/settings.json          how they were made

Samples from nothing, or variants of structures: sample k starts from structure k, the first again after the last.

A folder holds samples of one kind: made with the same settings.
"""

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ophio.autoencoder import Autoencoder
from ophio.diffusion import LatentDiffusion
from ophio.diffusion.samplers import SAMPLERS, options_of
from ophio.errors import UserError
from ophio.files import contents_hash, write_whole
from ophio.foldability import Foldability, foldability_of
from ophio.forks import default_workers, each_forked
from ophio.io import read_structure, write_structure
from ophio.metrics import tm_score
from ophio.pages import SHOWN, Entry, grid_page
from ophio.pretrained import load_diffusion, read_card
from ophio.protein import Protein
from ophio.sampling import Sample, SamplerSettings, generate, report_of

SHORTEST, LONGEST = 10, 5000  # residues
DEFAULT_LENGTH = 64  # residues
LARGEST_BATCH, BATCH_RESIDUES = 32, 8192  # samples and residues made at a time, unless asked otherwise
RECORDS, SETTINGS = "samples.jsonl", "settings.json"


@dataclass(frozen=True)
class Item:
    """A sample to make: its number from 1, its length in residues, and the seed of its random numbers."""

    number: int
    length: int
    seed: int

    @property
    def name(self) -> str:
        return f"sample_{self.number:05d}"


def plan(num: int, shortest: int, longest: int, seed: int) -> list[Item]:
    """`num` samples of lengths drawn evenly from shortest..longest. Sample k is the same for any `num`.

    Raises UserError for lengths that no chain has.
    """
    if num < 1:
        raise UserError(f"num={num}: give a number of samples, at least 1")
    if not SHORTEST <= shortest <= longest <= LONGEST:
        asked = shortest if shortest == longest else f"{shortest}-{longest}"
        raise UserError(f"length {asked}: give residues, or a rising range of them, within {SHORTEST}-{LONGEST}")

    def item(number: int) -> Item:
        stream = np.random.default_rng((seed, number))
        return Item(number, int(stream.integers(shortest, longest + 1)), int(stream.integers(2**62)))

    return [item(number) for number in range(1, num + 1)]


def length_range(text: str | int) -> tuple[int, int]:
    """Shortest and longest of "64" or "50-100", in residues. Raises UserError for what is no number and no range."""
    first, dash, last = str(text).partition("-")
    try:
        return int(first), int(last if dash else first)
    except ValueError:
        raise UserError(f"length {text}: give a number of residues, 64, or a range, 50-100") from None


def outside_training(items: Sequence[Item], trained: Sequence[int]) -> str | None:
    """A warning where lengths leave the range that the model was trained on."""
    odd = sorted({item.length for item in items if not trained[0] <= item.length <= trained[1]})
    if not odd:
        return None
    asked = f"{odd[0]}" if len(odd) == 1 else f"{odd[0]}-{odd[-1]}"
    return f"length {asked}: the model was trained on {trained[0]}-{trained[1]} residues; expect worse samples"


def claim(folder: Path, settings: dict, what: str = "samples") -> None:
    """Makes the folder, or raises UserError where it holds samples (or `what`) made otherwise, or cannot be written."""
    path = folder / SETTINGS
    settings = json.loads(json.dumps(settings))  # as it will be read again
    if path.exists():
        try:
            there = json.loads(path.read_text())
        except ValueError:
            raise UserError(f"{path}: damaged; remove the folder or give another one") from None
        names = dict.fromkeys([*settings, *there])
        changed = [name for name in names if there.get(name) != settings.get(name)]
        differences = [f"{name} {there.get(name)} there, {settings.get(name)} now" for name in changed]
        if differences:
            raise UserError(f"{folder}: holds {what} made otherwise ({', '.join(differences)}): give another folder")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: is not a folder and cannot become one ({error.strerror})") from None
    write_whole(path, (json.dumps(settings, indent=1) + "\n").encode())


@dataclass(frozen=True)
class Start:
    """A chain that samples are variants of, and the name of its file."""

    name: str
    protein: Protein


def in_turn(starts: Sequence[Start], item: Item) -> Start:
    """What a sample is a variant of: sample k of structure k, the first again after the last."""
    return starts[(item.number - 1) % len(starts)]


@dataclass(frozen=True)
class Run:
    """Everything needed to fill a folder with samples; `prepare` makes it."""

    folder: Path
    items: list[Item]
    diffusion: LatentDiffusion
    autoencoder: Autoencoder
    sampler: SamplerSettings
    foldability: Foldability | None = None  # to choose among drafts by
    starts: Sequence[Start] = ()  # what the samples are variants of

    def to(self, device: torch.device | str) -> "Run":
        return replace(self, diffusion=self.diffusion.to(device), autoencoder=self.autoencoder.to(device))

    def fill(
        self, batch_size: int | None = None, rank: int = 0, world_size: int = 1, num_workers: int | None = 1
    ) -> None:
        """Makes the samples that the folder does not have yet, batch by batch; with several ranks, every n-th batch.

        Each process appends to a list of its own; `collect` then makes the files that tell of all samples.

        Args:
            batch_size: samples made at a time. None: half of all, at most 32 and about 8,192 residues, on every machine,
                since rounding depends on what shares a batch.
            num_workers: processes forked from this one that make batches side by side, which one batch of small proteins
                cannot use two cores for; on the CPU alone. None: as many as there are cores and batches.

        Raises UserError for less than one worker, and for a batch of less than one sample.
        """
        if num_workers is not None and num_workers < 1:
            raise UserError(f"workers {num_workers}: give a number of processes, at least 1")
        if batch_size is None:
            few = max(1, BATCH_RESIDUES // (self.sampler.drafts * max(item.length for item in self.items)))
            batch_size = min(LARGEST_BATCH, few, math.ceil(len(self.items) / 2))
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: give a number of samples, at least 1")
        done = set(_records(self.folder))
        batches = list(_batches(self.items, batch_size))[rank::world_size]
        batches = [batch for batch in batches if any(item.name not in done for item in batch)]
        num_workers = default_workers(len(batches)) if num_workers is None else num_workers
        with tqdm(total=sum(map(len, batches)), unit="sample", disable=None, leave=False) as bar:
            for count in each_forked(partial(self._make, done, rank), batches, num_workers):
                bar.update(count)

    def _make(self, done: set[str], rank: int, batch: list[Item]) -> int:
        """Makes and records what is missing of a batch; how many samples the batch has."""
        # the whole batch even where some are done: a sample's rounding depends on its companions
        lengths, seeds = [item.length for item in batch], [item.seed for item in batch]
        starts = [in_turn(self.starts, item) for item in batch] if self.starts else []
        chains = [start.protein for start in starts]
        samples = generate(self.diffusion, self.autoencoder, lengths, seeds, self.sampler, self.foldability, chains)
        with open(self.folder / f"{RECORDS}.part{rank}.{os.getpid()}", "a", encoding="utf-8") as log:
            log.write("\n")  # ends a line that a crash cut off
            for item, sample, start in zip(batch, samples, starts or [None] * len(batch), strict=True):
                if item.name not in done:
                    log.write(json.dumps(_write(self.folder, item, sample, start)) + "\n")
                    log.flush()
        return len(batch)


def prepare(
    model: str,
    num: int,
    length: str | int | None,
    seed: int,
    folder: Path,
    asked: Mapping[str, Any],
    start: Sequence[Path] = (),
) -> Run:
    """Loads the model and claims the folder.

    Args:
        model: a released diffusion model, or a folder that training wrote.
        length: residues, or a range: "50-100". None: 64, or those of the structures to start from.
        asked: fields of `SamplerSettings`; None stands for what the model's card says, or else the default. `typical`:
            whether the content of chains that the card lists is asked for.
        start: structure files that the samples are variants of, in turn.

    Raises UserError for options that make no sense, before anything is written. Warns where lengths leave the range that
    the model was trained on.
    """
    if start and length is not None:
        raise UserError(f"length {length}: variants are as long as what they start from; leave it out")
    shortest, longest = length_range(DEFAULT_LENGTH if length is None else length)
    items, starts = plan(num, shortest, longest, seed), [read_start(path) for path in start]
    if starts:
        items = [replace(item, length=in_turn(starts, item).protein.num_residues) for item in items]
    card = read_card(model)
    diffusion, autoencoder = load_diffusion(model)
    sampler = released_settings(card, {**asked, "typical": False} if starts else asked)
    foldability = foldability_of(model) if sampler.drafts > 1 else None
    if sampler.compactness == sampler.compactness and not diffusion.denoiser.condition.compactness:
        raise UserError(f"compactness {sampler.compactness}: {model} was not trained to follow it; leave it out")
    if sampler.origin is not None and not diffusion.denoiser.condition.origin:
        raise UserError(f"origin {sampler.origin}: {model} was not trained to follow it; leave it out")
    if starts:
        check_variants(sampler, float(diffusion.process.schedule.sigmas(sampler.steps)[-2]))
    odd = outside_training(items, card["lengths"])
    if odd:
        warnings.warn(odd, stacklevel=2)
    asked_now = {key: value if value == value else None for key, value in asdict(sampler).items()}  # NaN is no JSON
    asked_now["typical"] = len(sampler.typical)  # hundreds of chains, in the card
    settings = {"model": model, "weights": card["weights_sha256"], "seed": seed, "length": [shortest, longest]}
    if starts:
        settings |= {"length": None, "start": contents_hash(start)}
    else:
        del asked_now["start_sigma"]  # without a meaning
    if not sampler.hold_torsions:
        del asked_now["hold_torsions"]  # folders made before there was this option go on
    claim(folder, settings | asked_now)
    return Run(folder, items, diffusion, autoencoder, sampler, foldability, starts)


def read_start(path: Path) -> Start:
    """The first protein chain of a file. Raises UserError for a chain with gaps in its residues, or of a length that no sample has."""
    protein = read_structure(path)
    if not SHORTEST <= protein.num_residues <= LONGEST:
        raise UserError(f"{path}: {protein.num_residues} residues; variants are made of {SHORTEST} to {LONGEST}")
    if masked := (~protein.residue_mask).nonzero().flatten().tolist():
        number = int(protein.residue_number[masked[0]])
        raise UserError(
            f"{path}: residue {number} has no CA ({len(masked)} such residues): a variant needs all; model them first"
        )
    return Start(path.name, protein)


def released_settings(card: Mapping[str, Any], asked: Mapping[str, Any]) -> SamplerSettings:
    """What is `asked`, otherwise what the card of a diffusion model says, otherwise the default; see `prepare`."""
    released = dict(card.get("sampling", {}))
    if asked.get("sampler") not in (None, released.get("sampler")):
        released.pop("options", None)  # those of another sampler
    if asked.get("idealize") is False:
        released.pop("hold_torsions", None)  # of a finish that is not wanted
    chosen = released | {key: value for key, value in asked.items() if value is not None}
    typical = card["typical"] if chosen.pop("typical", False) else ()
    return check_settings(SamplerSettings(**chosen, typical=typical))


def check_settings(sampler: SamplerSettings) -> SamplerSettings:
    """Raises UserError for values without a meaning."""
    if sampler.sampler not in SAMPLERS:
        raise UserError(f"sampler {sampler.sampler}: not one of {', '.join(SAMPLERS)}")
    known = options_of(sampler.sampler)
    for name, value in sampler.options.items():
        if name not in known:
            raise UserError(f"options {name}: the sampler {sampler.sampler} has {', '.join(known) or 'none'}")
        if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise UserError(f"options {name}={value}: give a number, at least 0")
    if sampler.steps < 2:
        raise UserError(f"steps {sampler.steps}: give at least 2")
    if sampler.drafts < 1:
        raise UserError(f"drafts {sampler.drafts}: give a number of drafts a sample, at least 1")
    if sampler.draft_steps < 2:
        raise UserError(f"draft steps {sampler.draft_steps}: give at least 2")
    if not 0 < sampler.rework < math.inf:
        raise UserError(f"rework {sampler.rework}: give the noise level to go on from, above 0")
    if sampler.hold_torsions and not sampler.idealize:
        raise UserError("hold torsions: it is the finish that would move them; leave out --no-idealize")
    if not 0 < sampler.start_sigma < math.inf:
        raise UserError(f"start sigma {sampler.start_sigma}: give the noise level to start from, above 0")
    if not 0 <= sampler.rarity < math.inf:
        raise UserError(f"rarity {sampler.rarity}: give a weight, at least 0")
    if not 0 < sampler.noise_scale <= 2:
        raise UserError(f"noise scale {sampler.noise_scale}: give a number above 0, at most 2")
    for name in ("helix", "strand"):
        value = getattr(sampler, name)
        if value == value and not 0 <= value <= 1:
            raise UserError(f"{name} {value}: give a fraction from 0 to 1")
    if sampler.origin not in (None, "designed", "natural"):
        raise UserError(f"origin {sampler.origin}: not one of designed, natural")
    if sampler.compactness == sampler.compactness and not 1 <= sampler.compactness <= 10:
        raise UserError(f"compactness {sampler.compactness}: give a radius of gyration over N^0.38, Å; compact: 2.2")
    if sampler.helix + sampler.strand > 1:
        raise UserError(f"helix {sampler.helix} and strand {sampler.strand}: together more than the whole chain")
    return sampler


def check_variants(sampler: SamplerSettings, lowest: float) -> None:
    """Raises UserError for what variants cannot be made with. `lowest`: of the noise levels above 0."""
    if sampler.drafts > 1:
        what = "variants are not drafted; make more of them and choose (`ophio select`)"
        raise UserError(f"drafts {sampler.drafts}: {what}")
    if sampler.start_sigma < lowest:
        what = f"the lowest noise level in {sampler.steps} steps is {lowest:.2g}"
        raise UserError(f"start sigma {sampler.start_sigma}: {what}; give more")


def summary(records: Sequence[dict], folder: Path) -> str:
    """A few lines about the samples."""
    made = [record for record in records if "failed" not in record]
    lines = [f"{len(made)} samples in {folder}: open {folder / 'index.html'}"]
    if made:
        mean = {key: float(np.mean([r[key] for r in made])) for key in ("valid_residues", "helix", "strand", "seconds")}
        valid = f"backbone geometry valid at {mean['valid_residues']:.1%} of residues"
        lines.append(
            f"{valid}; helix {mean['helix']:.2f}, strand {mean['strand']:.2f}; {mean['seconds']:.3f} s a sample in each process"
        )
    if made and "tm_to_start" in made[0]:
        lines.append(
            f"TM-score to what they are variants of {np.mean([r['tm_to_start'] for r in made]):.2f} in the mean"
        )
    redrawn, failed = sum(r["attempts"] - 1 for r in records), len(records) - len(made)
    if redrawn:
        lines.append(f"{redrawn} diverging draws were repeated; {failed} samples failed for good")
    return "\n".join(lines)


def collect(folder: Path, items: Sequence[Item], viewer_js: str | None = None) -> list[dict]:
    """Writes samples.jsonl, samples.fasta and index.html from what all ranks logged. Returns the records of `items`.

    `viewer_js`: as for `ophio.pages.grid`.
    """
    found = _records(folder)
    records = [found[name] for name in sorted(found)]
    write_whole(folder / RECORDS, "".join(json.dumps(record) + "\n" for record in records).encode())
    for part in folder.glob(f"{RECORDS}.part*"):
        part.unlink()
    made = [record for record in records if "failed" not in record]
    entries = (f">{r['name']} length={r['length']} seed={r['seed']}\n{r['sequence']}\n" for r in made)
    write_whole(folder / "samples.fasta", "".join(entries).encode())
    shown = [Entry(read_structure(folder / r["file"]), r["name"], _caption(r)) for r in made[:SHOWN]]
    if shown:
        page = grid_page(shown, f"{len(made)} samples", total=len(made), viewer_js=viewer_js)
        write_whole(folder / "index.html", page.encode())
    return [found[item.name] for item in items if item.name in found]


def _write(folder: Path, item: Item, sample: Sample, start: Start | None) -> dict:
    record = {"name": item.name, "length": item.length, "seed": item.seed, "attempts": sample.attempts}
    record["seconds"] = round(sample.seconds, 4)
    if sample.protein is None:
        return record | {"failed": f"diverged in {sample.attempts} attempts"}
    protein, file = sample.protein, f"{item.name}.pdb"
    if start is not None:
        near = float(tm_score(protein.positions, start.protein.positions, protein.atom_mask))
        record |= {"start": start.name, "tm_to_start": round(near, 4)}
    if not math.isnan(sample.idealized):
        record["idealized"] = round(sample.idealized, 3)
    write_structure(protein, folder / file)
    report = {key: round(value, 4) for key, value in report_of(protein).items()}
    return record | {"file": file, "sequence": protein.sequence, **report}


def _records(folder: Path) -> dict[str, dict]:
    """By name, of the samples whose file exists, and of those that failed. A line cut off by a crash is passed over."""
    records = {}
    for path in [folder / RECORDS, *sorted(folder.glob(f"{RECORDS}.part*"))]:
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if "failed" in record or (folder / record["file"]).exists():
                records[record["name"]] = record
    return records


def _batches(items: Sequence[Item], batch_size: int) -> Iterator[list[Item]]:
    ordered = sorted(items, key=lambda item: (item.length, item.number))  # little padding
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


def _caption(record: dict) -> str:
    return f"{record['length']} residues, helix {record['helix']:.2f}, strand {record['strand']:.2f}"
