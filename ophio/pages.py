"""Pages to look at structures with, drawn by 3Dmol.js (Rego & Koes 2015, Bioinformatics 31:1322)."""

import html
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import py3Dmol

from ophio.io import write_structure
from ophio.protein import Protein

CELL = 300  # pixels
COLUMNS = 4


def grid_page(structures: Sequence[tuple[Protein, str]], title: str, script: str | None = None) -> str:
    """An HTML page with a cartoon of every structure, blue at the N- and red at the C-terminus, and its caption.

    `script`: address of 3Dmol.js; None loads it from the 3Dmol project's server when the page is opened.
    """
    rows = -(-len(structures) // COLUMNS)
    options = {} if script is None else {"js": script}
    size = {"width": COLUMNS * CELL, "height": rows * CELL}
    view = py3Dmol.view(viewergrid=(rows, COLUMNS), linked=False, **size, **options)
    for k, (protein, caption) in enumerate(structures):
        cell = divmod(k, COLUMNS)
        view.addModel(_pdb(protein), "pdb", viewer=cell)
        view.setStyle({"cartoon": {"color": "spectrum"}}, viewer=cell)
        label = {"position": {"x": 0, "y": 0, "z": 0}, "useScreen": True, "fontSize": 11, "fontColor": "black"}
        view.addLabel(caption, label | {"backgroundOpacity": 0.0}, viewer=cell)
        view.zoomTo(viewer=cell)
    head = f'<!DOCTYPE html><html><head><meta charset="utf-8"><title>{html.escape(title)}</title></head>'
    return f"{head}<body><h1>{html.escape(title)}</h1>\n{view.write_html()}\n</body></html>\n"


def _pdb(protein: Protein) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.pdb"
        write_structure(protein, path)
        return path.read_text()
