"""The `ophio` command. Subcommands import what they need: `ophio --help` starts at once."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from ophio import __version__
from ophio.errors import UserError, of_system
from ophio.memory import keep_freed_memory


Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Exit status: 0 all done, 2 bad input (said in one line), 130 interrupted."""
    options = _parser().parse_args(arguments)
    keep_freed_memory()
    with warnings.catch_warnings():
        # made to be replaced, which ty does not know
        warnings.showwarning = lambda message, *_, **__: _complain(message)  # ty: ignore[invalid-assignment]
        try:
            return options.run(options)
        except UserError as error:
            _complain(error)
            return 2
        except KeyboardInterrupt:
            _complain("interrupted; files that were written are complete")
            return 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads what is left to print
            return 141
        except OSError as error:
            _complain(of_system(error))
            return 2


def _parser() -> argparse.ArgumentParser:
    width = partial(argparse.HelpFormatter, max_help_position=32)
    parser = argparse.ArgumentParser(
        prog="ophio",
        formatter_class=width,
        description="Protein structures in a compressed, equivariant latent space.",
        epilog="Example: ophio sample --num 16 --length 64 --out samples",
    )
    parser.add_argument("--version", action="version", version=f"ophio {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Command, help: str, epilog: str = "") -> argparse.ArgumentParser:
        sentence = f"{help[0].upper()}{help[1:]}."
        added = commands.add_parser(name, help=help, description=sentence, epilog=epilog, formatter_class=width)
        added.set_defaults(run=run)
        return added

    sample = command(
        "sample", _sample, "new proteins: noise -> latents -> structures",
        "Writes a structure with all atoms for each sample, samples.jsonl (what each is like), samples.fasta and "
        "index.html. Samples that are in the folder already are kept, so an interrupted run goes on.",
    )  # fmt: skip
    _sample_options(sample)
    _viewer_option(sample)

    select = command(
        "select", _select, "which structures are worth folding: told to fold, and not all alike",
        "Copies the best for their length to a folder, common folds marked down, with selection.csv and index.html. A file that "
        "cannot be judged is named with the reason; the others are, the exit status is 2. Example: "
        "ophio sample --num 2000 --length 50-100 --out samples && ophio select samples --num 200 --out best",
    )  # fmt: skip
    _select_options(select)
    _viewer_option(select)

    evaluate = command(
        "evaluate", _evaluate, "how good sampled structures are: designable, diverse, new, and beside controls",
        "Designs sequences for every structure with ProteinMPNN, folds them and compares. Writes report.json, report.md, "
        "index.html and records.jsonl. Records that are in the folder already are kept, so an interrupted run goes on. A file "
        "that cannot be evaluated is named with the reason; the others are done, the exit status is 2.",
    )  # fmt: skip
    _evaluate_options(evaluate)
    _viewer_option(evaluate)

    made = "A file that cannot be done is named with the reason; the others are done, the exit status is 2."
    reconstruct = command(
        "reconstruct", _reconstruct, "structures -> latents -> structures, and how well they agree",
        f"Writes a structure for each input, metrics.csv, and index.html to look at. {made}",
    )  # fmt: skip
    _structure_options(reconstruct)
    _model_option(reconstruct)
    _output_options(reconstruct, structures=True)
    _viewer_option(reconstruct)

    encode = command("encode", _encode, "structures -> latent files", f"Writes an .npz for each input. {made}")
    _structure_options(encode)
    _model_option(encode)
    _output_options(encode, structures=False)

    decode = command("decode", _decode, "latent files -> structures", f"Writes a structure for each latent. {made}")
    decode.add_argument(
        "inputs", nargs="+", type=Path, metavar="LATENT", help="files that `ophio encode` wrote, or folders of them"
    )
    decode.add_argument("--model", metavar="NAME|PATH", help="the model that encoded them (default: the one they name)")
    _output_options(decode, structures=True)

    interpolate = command(
        "interpolate", _interpolate, "a path between conformations of one protein, and how physical it is",
        "Writes the path as the models of one file; beside it a report (.json) of every frame and of two baselines, "
        "straight lines of atoms and of torsions, and a page to look at (.html).",
    )  # fmt: skip
    _interpolate_options(interpolate)
    _viewer_option(interpolate)

    command("models", _models, "the released models, which --model takes by name")
    command("doctor", _doctor, "versions, devices, models and optional parts of this installation: for a bug report")
    return parser


def _sample_options(parser: argparse.ArgumentParser) -> None:
    def add(name: str, default, help: str, **more) -> None:
        parser.add_argument(name, default=default, help=help, **more)

    add("--num", 16, "how many samples (default: 16)", type=int, metavar="N")
    add("--length", None, "residues, or a range: 50-100 (default: 64)", metavar="L")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for what is written")
    add(
        "--seed",
        0,
        "start of the random numbers: the same seed gives the same samples (default: 0)",
        type=int,
        metavar="N",
    )
    add(
        "--start", [], "make variants of these, in turn: PDB, mmCIF or BinaryCIF files (also .gz), or folders of them (default: new proteins)",
        nargs="+", type=Path, metavar="IN",
    )  # fmt: skip
    add(
        "--start-sigma", None, "noise level to start variants from: 1 stays close, 1.5 mostly keeps the fold, 3 mostly does not (default: 1.5)",
        type=float, metavar="X",
    )  # fmt: skip
    add("--steps", None, "steps of the sampler (default: what the model was released with)", type=int, metavar="N")
    add(
        "--sampler",
        None,
        "algorithm (default: what the model was released with)",
        choices=["ddpm", "dpm_solver", "heun", "ddim", "euler_flow"],
    )
    add(
        "--noise-scale",
        None,
        "lower: better and less diverse samples (default: what the model was released with)",
        type=float,
        metavar="X",
    )
    add(
        "--drafts", None, "quick drafts of each sample, of which the best is worked out: 12 fold better, and are less diverse (default: what the model was released with)",
        type=int, metavar="N",
    )  # fmt: skip
    add("--helix", float("nan"), "fraction of helix to aim at, 0-1 (default: any)", type=float, metavar="X")
    add("--strand", float("nan"), "fraction of strand to aim at, 0-1 (default: any)", type=float, metavar="X")
    add(
        "--compactness", None, "radius of gyration / N^0.38 to aim at, Å; natural: 2.1-2.5 (default: what the model was released with)",
        type=float, metavar="X",
    )  # fmt: skip
    add(
        "--origin", None, "proteins like these (default: what the model was released with)",
        choices=["designed", "natural"],
    )  # fmt: skip
    add(
        "--guidance",
        1.0,
        "how far to follow helix, strand, compactness and origin; 1 is as trained (default: 1)",
        type=float,
        metavar="X",
    )
    parser.add_argument(
        "--idealize", action=argparse.BooleanOptionalAction, default=None,
        help="bring bonds, angles and contacts into their ranges after decoding (default: what the model was released with)",
    )  # fmt: skip
    parser.add_argument(
        "--hold-torsions", action=argparse.BooleanOptionalAction, default=None,
        help="keep the backbone's torsions meanwhile, and make unusual ones usual (default: what the model was released with)",
    )  # fmt: skip
    add("--batch-size", None, "samples made at a time (default: half of them, at most 32)", type=int, metavar="N")
    add("--workers", None, "processes that make batches side by side (default: one a core)", type=int, metavar="N")
    add(
        "--model",
        "mini_diffusion",
        "released diffusion model (see `ophio models`), or a folder that training wrote (default: mini_diffusion)",
        metavar="NAME|PATH",
    )
    add("--device", "cpu", "cpu, cuda, cuda:1, ... (default: cpu)")


def _sample(options: argparse.Namespace) -> int:
    from ophio.pages import check_viewer
    from ophio.samples import collect, prepare, summary

    check_viewer(options.viewer_js)
    _check_device(options.device)
    asked = {"sampler": options.sampler, "steps": options.steps, "noise_scale": options.noise_scale}
    asked |= {
        "helix": options.helix,
        "strand": options.strand,
        "compactness": options.compactness,
        "origin": options.origin,
    }
    asked |= {"drafts": options.drafts, "guidance": options.guidance, "idealize": options.idealize}
    asked |= {"start_sigma": options.start_sigma, "hold_torsions": options.hold_torsions}
    start = _structure_files(options.start)
    run = prepare(options.model, options.num, options.length, options.seed, options.out, asked, start)
    run.to(options.device).fill(options.batch_size, num_workers=options.workers if options.device == "cpu" else 1)
    print(summary(collect(options.out, run.items, options.viewer_js), options.out))
    return 0


def _select_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "samples", type=Path, metavar="SAMPLES", help="folder of PDB, mmCIF or BinaryCIF files (also .gz)"
    )
    parser.add_argument("--num", type=int, required=True, metavar="N", help="structures to choose, at most")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for what is written")
    parser.add_argument(
        "--diversity", type=float, metavar="X",
        help="what likeness to those chosen before costs: 0 nothing, 1 a lot (default: 0.4)",
    )  # fmt: skip
    parser.add_argument(
        "--banded", nargs="+", default=[], metavar="WHAT",
        help="of helix, strand, compactness: what has to be like in the middle 80 %% of the model's training chains (default: nothing)",
    )  # fmt: skip
    parser.add_argument(
        "--model", default="mini_diffusion", metavar="NAME|PATH",
        help="diffusion model whose denoiser looks at them (default: mini_diffusion)",
    )  # fmt: skip


def _select(options: argparse.Namespace) -> int:
    from ophio.evaluation.shortlist import DIVERSITY, select
    from ophio.pages import check_viewer

    check_viewer(options.viewer_js)
    diversity = DIVERSITY if options.diversity is None else options.diversity
    rows, complaints = select(
        options.samples, options.num, options.out, options.model, diversity, options.banded, options.viewer_js
    )
    for complaint in complaints:
        _complain(complaint)
    mean = sum(row["energy_per_residue"] for row in rows) / len(rows)
    unlike = sum(row["alike_before"] == 0 for row in rows)
    print(f"{len(rows)} structures in {options.out}: open {options.out / 'index.html'}")
    print(f"energy told in the mean {mean:.2f} a residue; {unlike} are unlike any chosen before them")
    return 2 if complaints else 0


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    def add(name: str, default, help: str, **more) -> None:
        parser.add_argument(name, default=default, help=help, **more)

    parser.add_argument(
        "samples", type=Path, metavar="SAMPLES", help="folder of PDB, mmCIF or BinaryCIF files (also .gz)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="REPORT", help="folder for what is written")
    add("--num", None, "samples at most, the first by name (default: all)", type=int, metavar="N")
    add("--fast", False, "3 sequences, no folding: only energies under the predicted distances", action="store_true")
    add("--sequences", None, "sequences designed for each structure (default: 8, with --fast 3)", type=int, metavar="N")
    add(
        "--engine",
        "trrosetta",
        "network that folds the sequences (default: trrosetta)",
        choices=["trrosetta", "esmfold"],
    )
    add(
        "--engine-weights",
        None,
        "weights of esmfold: a folder, or a name on the Hugging Face hub (default: facebook/esmfold_v1)",
        metavar="PATH|NAME",
    )
    add(
        "--networks",
        None,
        "how many networks of trrosetta, 1 to 5: fewer are faster and a little worse (default: 5)",
        type=int,
        metavar="N",
    )
    add(
        "--controls",
        None,
        "natives to compare with: a corpus (its test split) or a folder (default: none, altered samples stand in)",
        type=Path,
        metavar="DIR",
    )
    add(
        "--num-controls",
        20,
        "natives at most, each also mirrored and noised; 0 for none (default: 20)",
        type=int,
        metavar="N",
    )
    add(
        "--control-origin",
        [],
        "which natives of a corpus (default: any)",
        choices=["designed", "natural", "predicted"],
        nargs="+",
    )
    add(
        "--reference",
        None,
        "structures known before, for novelty: a corpus (its training split) or a folder (default: no novelty)",
        type=Path,
        metavar="DIR",
    )
    add("--lengths", "20-512", "residues of chains that are evaluated (default: 20-512)", metavar="A-B")
    add(
        "--seed",
        0,
        "start of the random numbers of designing, folding and choosing controls (default: 0)",
        type=int,
        metavar="N",
    )
    add("--workers", 1, "processes that evaluate side by side (default: 1)", type=int, metavar="N")
    add("--device", "cpu", "cpu, cuda, cuda:1, ... (default: cpu)")


def _evaluate(options: argparse.Namespace) -> int:
    from ophio.evaluation.evaluate import FAILED, REJECTED, complaint, prepare
    from ophio.evaluation.report import make_report, summary
    from ophio.evaluation.self_consistency import Protocol
    from ophio.pages import check_viewer
    from ophio.samples import length_range

    check_viewer(options.viewer_js)
    _check_device(options.device)
    sequences = (3 if options.fast else 8) if options.sequences is None else options.sequences
    engine = {"engine": options.engine, "engine_weights": options.engine_weights, "networks": options.networks}
    protocol = Protocol(sequences, fast=options.fast, seed=options.seed, **engine)
    evaluation = prepare(
        options.samples, options.out, protocol, options.num, length_range(options.lengths),
        options.controls, options.num_controls, options.control_origin, options.device,
    )  # fmt: skip
    rejected = [record for record in evaluation.absent if record["kind"] == REJECTED]
    for record in rejected:
        _complain(complaint(record, options.samples))
    report = make_report(evaluation, evaluation.fill(options.workers), options.reference, options.viewer_js)
    print(summary(report, options.out))
    failed = [record for record in report["failed"] if record["kind"] == FAILED]
    for record in failed:
        _complain(complaint(record, options.samples))
    if failed or rejected:
        _complain(f"{len(failed + rejected)} structures could not be evaluated; see {options.out / 'report.md'}")
    return 2 if failed or rejected else 0


def _interpolate_options(parser: argparse.ArgumentParser) -> None:
    def add(name: str, help: str, **more) -> None:
        parser.add_argument(name, help=help, **more)

    many = "two or more structures in the order of the path, or one file of several models"
    add("inputs", many, nargs="+", type=Path, metavar="IN")
    add("--out", "the path: .pdb, .cif or .bcif, also .gz", type=Path, required=True, metavar="FILE")
    add(
        "--num", "frames from one structure to the next, both included (default: 25)", type=int, default=25, metavar="N"
    )
    ways = ["blend", "rigid", "linear", "spherical", "geodesic"]
    add("--method", "way through the latent space (default: blend, which measured best)", choices=ways)
    add(
        "--pin-ends",
        "start and end exactly on the structures given (default: on what the model makes of them)",
        action="store_true",
    )
    add("--no-finish", "leave frames as decoded: bonds, angles and clashes are not corrected", action="store_true")
    near = "known intermediates: how near does each path come?"
    add("--reference", near, nargs="+", type=Path, default=[], metavar="FILE")
    add("--trajectory", "also write the coordinates to this .dcd or .xtc file", type=Path, metavar="FILE")
    add("--chain", "chain id, the author's, or one for each file: A,B (default: the first protein chain)", metavar="ID")
    add("--model-number", "model in each of several files (default: 1)", type=int, default=1, metavar="N")
    add("--skip-nonstandard", "leave out residues that are not among the 20 amino acids", action="store_true")
    add(
        "--model",
        "released autoencoder (see `ophio models`), or a folder that training wrote (default: monomer)",
        metavar="NAME|PATH",
    )
    add("--device", "cpu, cuda, cuda:1, ... (default: cpu)", default="cpu")


def _interpolate(options: argparse.Namespace) -> int:
    from ophio.interpolation import METHOD, MODEL, path_through, superposed
    from ophio.pages import check_viewer
    from ophio.pairing import common_residues
    from ophio.path_report import LATENT, baselines, path_report
    from ophio.paths import check_outputs, check_references, read_conformations, read_references, report_of_paths
    from ophio.paths import summary, write_path

    check_viewer(options.viewer_js)
    check_outputs(options.out, options.trajectory, [*options.inputs, *options.reference])
    found = read_conformations(options.inputs, options.chain, options.model_number, options.skip_nonstandard)
    references = read_references(options.reference, options.skip_nonstandard)
    structures = superposed(common_residues(found))
    check_references(references, structures[0])
    settings = {"model": options.model or MODEL, "method": options.method or METHOD, "num": options.num}
    settings |= {"pin_ends": options.pin_ends, "finish": not options.no_finish}
    model = _load(settings["model"], options.device)
    _make_folder(options.out.parent)
    frames = path_through(structures, model, options.num, settings["method"], options.pin_ends, not options.no_finish)
    made = {LATENT: frames, **baselines(structures, options.num)}
    reports = {name: path_report(path, structures, options.num) for name, path in made.items()}
    report = settings | report_of_paths(made, reports, structures, references)
    write_path(frames, report, options.out, options.trajectory, options.viewer_js)
    print(summary(report, options.out))
    return 0


def _structure_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="IN",
        help="PDB, mmCIF or BinaryCIF files (also .gz), or folders of them",
    )
    parser.add_argument("--chain", metavar="ID", help="chain id, the author's (default: the first protein chain)")
    parser.add_argument("--model-number", type=int, default=1, metavar="N", help="model in the file (default: 1)")
    parser.add_argument(
        "--skip-nonstandard", action="store_true", help="leave out residues that are not among the 20 amino acids"
    )


def _model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="mini", metavar="NAME|PATH",
        help="released model (see `ophio models`), or a folder that training wrote (default: mini)",
    )  # fmt: skip


def _output_options(parser: argparse.ArgumentParser, structures: bool) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for what is written")
    if structures:
        parser.add_argument(
            "--format", choices=["pdb", "cif"], default="pdb", help="of the structures: PDB or mmCIF (default: pdb)"
        )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")


def _viewer_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--viewer-js", metavar="PATH|URL",
        help="3Dmol.js that pages use: a copy goes into the page, for reading without internet (default: $OPHIO_3DMOL, "
        "else it is loaded from the web)",
    )  # fmt: skip


def _reconstruct(options: argparse.Namespace) -> int:
    from ophio.files import write_whole
    from ophio.io import write_structure
    from ophio.pages import SHOWN, check_viewer, grid_page
    from ophio.reconstruction import COLUMNS, overlay_of, reconstruct
    from ophio.tables import markdown, write_csv

    check_viewer(options.viewer_js)
    files = _outputs(_structure_files(options.inputs), options.out, options.format)
    model = _load(options.model, options.device)
    _make_folder(options.out)
    rows, shown = [], []

    def one(path: Path, target: Path) -> None:
        result = next(reconstruct(model, [_read(path, options)]))
        write_structure(result.predicted, target)
        what = {"file": str(path), "structure": target.name, "chain": result.true.chain_id}
        rows.append({**what, **{key: result.report[key] for key in COLUMNS}})
        if len(shown) < SHOWN:
            shown.append(overlay_of(result, target.name))

    try:
        status = _for_each(files, one)
    finally:
        if rows:
            write_csv(rows, options.out / "metrics.csv")
            page = grid_page(shown, f"Reconstructions by {options.model}", total=len(rows), viewer_js=options.viewer_js)
            write_whole(options.out / "index.html", page.encode())
    if rows:
        listed = (
            "residues",
            "nodes",
            "numbers_per_residue",
            "ca_rmsd",
            "all_atom_rmsd",
            "residue_accuracy",
            "tm_score",
        )
        print(markdown([{"structure": row["structure"], **{COLUMNS[key]: row[key] for key in listed}} for row in rows]))
        print(f"\n{len(rows)} structures in {options.out}; all columns in {options.out / 'metrics.csv'} (RMSD in Å)")
        print(f"to look at: {options.out / 'index.html'}")
    return status


def _encode(options: argparse.Namespace) -> int:
    import torch

    from ophio.latents import fingerprint, save_latent
    from ophio.pretrained import available

    files = _outputs(_structure_files(options.inputs), options.out, "npz")
    model = _load(options.model, options.device)
    _make_folder(options.out)
    name = options.model if options.model in available() else str(Path(options.model).absolute())
    weights = fingerprint(model)

    def one(path: Path, target: Path) -> None:
        with torch.no_grad():
            latent = model.encode(_read(path, options).to(options.device)).map(lambda t: t.cpu())
        save_latent(latent, target, name, weights)
        shape = "x".join(str(size) for size in latent.cloud.features.shape)
        _say(f"{target}: {shape} features, {latent.numbers_per_residue:.1f} numbers a residue")

    return _for_each(files, one)


def _decode(options: argparse.Namespace) -> int:
    import torch

    from ophio.io import write_structure
    from ophio.latents import fingerprint, load_latent

    files = _outputs(_files(options.inputs, (".npz",)), options.out, options.format)
    models = {}

    def model_of(name: str):
        if name not in models:
            model = _load(name, options.device)
            models[name] = model, fingerprint(model)
        return models[name]

    if options.model is not None:
        model_of(options.model)
    _make_folder(options.out)

    def one(path: Path, target: Path) -> None:
        latent, encoder, weights = load_latent(path)
        try:
            model, found = model_of(options.model or encoder)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if found != weights:
            what = f"encoded by {encoder} with other weights than those of {options.model or encoder} here"
            raise UserError(f"{path}: {what}: decode it with the model that encoded it (--model)")
        with torch.no_grad():
            protein = model.decode(latent.map(lambda t: t.to(options.device))).map(lambda t: t.cpu())
        write_structure(protein, target)
        _say(str(target))

    return _for_each(files, one)


def _models(options: argparse.Namespace) -> int:
    from ophio.pretrained import available, read_card

    for name in available():
        card = read_card(name)
        print(f"{name}: {card.get('description', '')} ({card['parameters'] / 1e6:.1f} M parameters)")
    if not available():
        _complain("no released models in this installation; --model takes a folder that training wrote")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from ophio.doctor import report

    print(report())
    return 0


def _load(name: str, device: str):
    from ophio.pretrained import load

    _check_device(device)
    return load(name).to(device)


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from None


def _read(path: Path, options: argparse.Namespace):
    from ophio.io import read_structure

    return read_structure(path, options.chain, options.model_number, options.skip_nonstandard)


def _structure_files(inputs: list[Path]) -> list[Path]:
    from ophio.io import SUFFIXES

    return _files(inputs, [*SUFFIXES, *(f"{suffix}.gz" for suffix in SUFFIXES)])


def _files(inputs: list[Path], suffixes: Sequence[str]) -> list[Path]:
    """The files given, and of folders the files in them that have one of the suffixes; each once."""
    paths: list[Path] = []
    for path in inputs:
        inside = [path]
        if path.is_dir():
            inside = sorted(p for p in _inside(path) if p.name.lower().endswith(tuple(suffixes)) and p.is_file())
        if not inside:
            raise UserError(f"{path}: no {', '.join(suffixes)} files in this folder")
        paths += inside
    return list({path.absolute(): path for path in paths}.values())


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None


def _outputs(paths: list[Path], folder: Path, suffix: str) -> list[tuple[Path, Path]]:
    """Every file with the one to make of it. Names that would come twice are numbered; no input is overwritten."""
    taken: set[str] = set()
    files = []
    for path in paths:
        stem = Path(path.name[:-3] if path.name.lower().endswith(".gz") else path.name).stem
        name, count = stem, 1
        while name.casefold() in taken:
            count += 1
            name = f"{stem}_{count}"
        taken.add(name.casefold())
        files.append((path, folder / f"{name}.{suffix}"))
    inputs = {path.resolve() for path in paths}
    for _, target in files:
        if target.resolve() in inputs:
            raise UserError(f"--out {folder}: would overwrite {target}, an input: give another folder")
    return files


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: is not a folder and cannot become one ({error.strerror})") from None


def _for_each(files: list[tuple[Path, Path]], one: Callable[[Path, Path], None]) -> int:
    """Does what can be done; says for each file that cannot why, and returns the exit status."""
    from torch import OutOfMemoryError

    failed = 0
    for path, target in _progress(files):
        try:
            one(path, target)
        except UserError as error:
            _complain(error)
            failed += 1
        except (MemoryError, OutOfMemoryError):
            _complain(f"{path}: not enough memory on this device")
            failed += 1
    if failed and len(files) > 1:
        _complain(f"{failed} of {len(files)} files failed")
    return 2 if failed else 0


def _progress(files: list[tuple[Path, Path]]) -> Iterator[tuple[Path, Path]]:
    from tqdm import tqdm

    return iter(tqdm(files, unit="file", disable=len(files) < 5 or not sys.stderr.isatty(), leave=False))


def _say(message: str) -> None:
    from tqdm import tqdm

    tqdm.write(message)  # above the progress bar, if there is one


def _complain(reason: object) -> None:
    from tqdm import tqdm

    tqdm.write(f"ophio: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
