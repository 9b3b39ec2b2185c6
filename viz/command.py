"""What the scripts of this folder share: options, structures to read, and errors in one line."""

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from ophio.data.corpus import Corpus
from ophio.errors import UserError
from ophio.evaluation.structures import is_corpus, read_chain, structure_files
from ophio.plots import available
from ophio.protein import Protein


def options_of(script: str, out: str) -> argparse.ArgumentParser:
    """A parser with the option --out; `script` is the docstring that tells what is read and written."""
    parser = argparse.ArgumentParser(description=script, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=out)
    return parser


def viewer_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--viewer-js", metavar="PATH|URL", help="3Dmol.js that the page uses (default: $OPHIO_3DMOL)")


def run(make: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Exit status 2 and one line for bad input."""
    options = parser.parse_args()
    try:
        make(options)
    except UserError as error:
        print(f"ophio: {error}", file=sys.stderr)
        sys.exit(2)
    print(options.out)


def need_matplotlib() -> None:
    if not available():
        raise UserError('plots need matplotlib: pip install "ophio[view]"')


def chains(source: Path, num: int | None = None) -> list[Protein]:
    """The first protein chain of a structure file, or of each in a folder, or the test split of a corpus; `num` at most."""
    if is_corpus(source):
        corpus = Corpus(source, "test")
        return [corpus[k] for k in range(min(len(corpus), num or len(corpus)))]
    files = structure_files(source)[0] if source.is_dir() else [source]
    return [read_chain(file).replace(name=file.name) for file in islice(files, num)]


def all_chains(sources: Sequence[Path], num: int | None = None) -> list[Protein]:
    return [protein for source in sources for protein in chains(source, num)][:num]
