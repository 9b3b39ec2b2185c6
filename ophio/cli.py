"""The `ophio` command. Subcommands import what they need: `ophio --help` starts at once."""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ophio import __version__
from ophio.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Exit status: 0 all done, 2 bad input (said in one line), 130 interrupted."""
    options = _parser().parse_args(arguments)
    warnings.showwarning = lambda message, *_, **__: print(f"ophio: {message}", file=sys.stderr)
    try:
        return options.run(options)
    except UserError as error:
        print(f"ophio: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ophio: interrupted; files that were written are complete", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ophio", description="Protein structures in a compressed, equivariant latent space.")
    parser.add_argument("--version", action="version", version=f"ophio {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    reconstruct = commands.add_parser("reconstruct", help="structures -> latents -> structures, and how well they agree")
    _structure_options(reconstruct)
    _model_options(reconstruct)
    reconstruct.set_defaults(run=_reconstruct)

    encode = commands.add_parser("encode", help="structures -> latent files (.npz)")
    _structure_options(encode)
    _model_options(encode)
    encode.set_defaults(run=_encode)

    decode = commands.add_parser("decode", help="latent files -> structures")
    decode.add_argument("inputs", nargs="+", type=Path, metavar="LATENT", help="files that `ophio encode` wrote, or folders of them")
    _model_options(decode, default=None, note="default: the one that encoded them")
    decode.set_defaults(run=_decode)

    models = commands.add_parser("models", help="released models and what they reach")
    models.set_defaults(run=_models)
    return parser


def _structure_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="IN", help="PDB, mmCIF or BinaryCIF files (also .gz), or folders of them"
    )
    parser.add_argument("--chain", help="chain id as in the file (default: the first protein chain)")
    parser.add_argument("--model-number", type=int, default=1, metavar="N", help="model of the file, from 1 (default: 1)")
    parser.add_argument("--skip-nonstandard", action="store_true", help="mask residues that are not among the 20")


def _model_options(parser: argparse.ArgumentParser, default: str | None = "mini", note: str = "default: mini") -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for what is written")
    parser.add_argument("--model", default=default, metavar="NAME|PATH", help=f"released model, or a folder that training wrote ({note})")
    parser.add_argument("--format", choices=["pdb", "cif"], default="pdb", help="of structures written (default: pdb)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")


def _reconstruct(options: argparse.Namespace) -> int:
    from ophio.io import write_structure
    from ophio.reconstruction import COLUMNS, reconstruct
    from ophio.tables import markdown, write_csv

    model = _load(options.model, options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []

    def one(path: Path, stem: str) -> None:
        result = next(iter(reconstruct(model, [_read(path, options)])))
        write_structure(result.predicted, options.out / f"{stem}.{options.format}")
        rows.append({"file": path.name, "chain": result.true.chain_id, **{key: result.report[key] for key in COLUMNS}})

    failed = _for_each(_structure_files(options.inputs), one)
    if rows:
        write_csv(rows, options.out / "metrics.csv")
        shown = ("file", "residues", "nodes", "numbers_per_residue", "ca_rmsd", "all_atom_rmsd", "residue_accuracy", "tm_score")
        print(markdown([{COLUMNS.get(key, key): row[key] for key in shown} for row in rows]))
        print(f"\n{len(rows)} structures in {options.out}; all columns in {options.out / 'metrics.csv'} (RMSD in Å)")
    return failed


def _encode(options: argparse.Namespace) -> int:
    import torch

    from ophio.latents import save_latent

    model = _load(options.model, options.device)
    options.out.mkdir(parents=True, exist_ok=True)

    def one(path: Path, stem: str) -> None:
        with torch.no_grad():
            latent = model.encode(_read(path, options).to(options.device)).map(lambda t: t.cpu())
        save_latent(latent, options.out / f"{stem}.npz", options.model)
        shape = "x".join(str(size) for size in latent.cloud.features.shape)
        print(f"{options.out / f'{stem}.npz'}: {shape} features, {latent.numbers_per_residue:.1f} numbers a residue")

    return _for_each(_structure_files(options.inputs), one)


def _decode(options: argparse.Namespace) -> int:
    import torch

    from ophio.io import write_structure
    from ophio.latents import load_latent

    options.out.mkdir(parents=True, exist_ok=True)
    models = {}

    def one(path: Path, stem: str) -> None:
        latent, encoder = load_latent(path)
        name = options.model or encoder
        if name not in models:
            models[name] = _load(name, options.device)
        model = models[name]
        expected, found = model.widen.weights[0].shape[0], latent.cloud.channels
        if expected != found:
            raise UserError(f"{path}: {found} latent channels, but model {name} decodes {expected}: it was encoded by {encoder}")
        with torch.no_grad():
            protein = model.decode(latent.map(lambda t: t.to(options.device))).map(lambda t: t.cpu())
        write_structure(protein, options.out / f"{stem}.{options.format}")
        print(options.out / f"{stem}.{options.format}")

    return _for_each(_files(options.inputs, (".npz",)), one)


def _models(options: argparse.Namespace) -> int:
    from ophio.pretrained import available, read_card

    for name in available():
        card = read_card(name)
        print(f"{name}: {card.get('description', '')} ({card['parameters'] / 1e6:.1f} M parameters)")
    return 0


def _load(name: str, device: str):
    import torch

    from ophio.pretrained import load

    try:
        return load(name).to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from None


def _read(path: Path, options: argparse.Namespace):
    from ophio.io import read_structure

    return read_structure(path, options.chain, options.model_number, options.skip_nonstandard)


def _structure_files(inputs: list[Path]) -> list[tuple[Path, str]]:
    from ophio.io import SUFFIXES

    return _files(inputs, [*SUFFIXES, *(f"{suffix}.gz" for suffix in SUFFIXES)])


def _files(inputs: list[Path], suffixes: Sequence[str]) -> list[tuple[Path, str]]:
    """Every file with a stem for what is made of it; folders give the files in them that have one of the suffixes."""
    paths: list[Path] = []
    for path in inputs:
        inside = sorted(p for p in path.iterdir() if p.name.lower().endswith(tuple(suffixes))) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: no {', '.join(suffixes)} files in this folder")
        paths += inside
    stems = [path.name.removesuffix(".gz").rsplit(".", 1)[0] for path in paths]
    twice = {stem for stem in stems if stems.count(stem) > 1}
    # same name from two folders or in two formats: number them, overwrite nothing
    return [(path, f"{stem}_{k}" if stem in twice else stem) for k, (path, stem) in enumerate(zip(paths, stems, strict=True), 1)]


def _for_each(files: list[tuple[Path, str]], one: Callable[[Path, str], None]) -> int:
    """Does what can be done; says for each file that cannot why, and returns the exit status."""
    failed = 0
    for path, stem in _progress(files):
        try:
            one(path, stem)
        except UserError as error:
            print(f"ophio: {error}", file=sys.stderr)
            failed += 1
    if failed and len(files) > 1:
        print(f"ophio: {failed} of {len(files)} files failed", file=sys.stderr)
    return 2 if failed else 0


def _progress(files: list[tuple[Path, str]]) -> Iterator[tuple[Path, str]]:
    from tqdm import tqdm

    return iter(tqdm(files, unit="file", disable=len(files) < 5 or not sys.stderr.isatty(), leave=False))


if __name__ == "__main__":
    sys.exit(main())
