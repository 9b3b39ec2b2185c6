"""Pages to look at structures with, drawn by 3Dmol.js (Rego & Koes 2015, Bioinformatics 31:1322)."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import py3Dmol
import torch

from ophio.constants import CB
from ophio.io import write_structure
from ophio.protein import Protein

CELL = 300  # pixels
COLUMNS = 4
PATH_WIDTH, PATH_HEIGHT = 800, 500
PLOT = (380, 160)
_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


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


def path_page(
    frames: Sequence[Protein],
    title: str,
    curves: Mapping[str, Mapping[str, Sequence[float | None]]],
    table: str,
    script: str | None = None,
) -> str:
    """An HTML page with the backbones of a path, a slider and a play button, a plot of each set of curves, and a table.

    `curves`: by plot and line, a value a frame (None for no value). `table`: text with columns. `script`: as for
    `grid_page`.
    """
    options = {} if script is None else {"js": script}
    view = py3Dmol.view(width=PATH_WIDTH, height=PATH_HEIGHT, **options)
    view.addModelsAsFrames(_pdb([_backbone(frame) for frame in frames]), "pdb")
    view.setStyle({"cartoon": {"color": "spectrum"}})
    view.zoomTo()
    viewer = view.write_html()
    plots = "\n".join(_plot(name, lines) for name, lines in curves.items())
    controls = _SLIDER.replace("LAST", str(len(frames) - 1)).replace("VIEWER", f"viewer_{view.uniqueid}")
    head = f'<!DOCTYPE html><html><head><meta charset="utf-8"><title>{html.escape(title)}</title></head>'
    body = f"<h1>{html.escape(title)}</h1>\n{viewer}\n{controls}\n{plots}\n<pre>{html.escape(table)}</pre>"
    return f"{head}<body>{body}\n</body></html>\n"


_SLIDER = """<p><button id="play">play</button>
<input id="frame" type="range" min="0" max="LAST" value="0" style="width: 500px"> frame <span id="shown">1</span></p>
<script>
const slider = document.getElementById("frame"), button = document.getElementById("play");
let timer = null, step = 1;
function show() {
  document.getElementById("shown").textContent = Number(slider.value) + 1;
  if (VIEWER) { VIEWER.setFrame(Number(slider.value)).then(() => VIEWER.render()); }
}
function advance() {
  if (Number(slider.value) + step > LAST || Number(slider.value) + step < 0) { step = -step; }
  slider.value = Number(slider.value) + step;
  show();
}
slider.addEventListener("input", show);
button.addEventListener("click", () => {
  if (timer) { clearInterval(timer); timer = null; } else { timer = setInterval(advance, 120); }
  button.textContent = timer ? "stop" : "play";
});
</script>"""


def _plot(name: str, lines: Mapping[str, Sequence[float | None]]) -> str:
    """A small SVG plot of values by frame, from 0 to the highest."""
    top = max((value for values in lines.values() for value in values if value is not None), default=0.0) or 1.0
    width, height = PLOT
    drawn = []
    for (label, values), color in zip(lines.items(), _COLORS, strict=False):
        points = [(k, value) for k, value in enumerate(values) if value is not None]
        across = max(1, len(values) - 1)
        text = " ".join(f"{width * k / across:.1f},{height * (1 - value / top):.1f}" for k, value in points)
        drawn.append(f'<polyline points="{text}" fill="none" stroke="{color}" stroke-width="2"/>')
    names = " ".join(f'<span style="color: {c}">{html.escape(n)}</span>' for n, c in zip(lines, _COLORS, strict=False))
    box = f'<svg width="{width}" height="{height}" style="border: 1px solid #ccc">{"".join(drawn)}</svg>'
    caption = f"{html.escape(name)}, 0 to {top:.3g}"
    return f'<figure style="display: inline-block">{box}<figcaption>{caption}: {names}</figcaption></figure>'


def _backbone(protein: Protein) -> Protein:
    """What a cartoon is drawn from, under the names of the residues."""
    kept = torch.arange(protein.atom_mask.shape[-1]) < CB
    return protein.replace(atom_mask=protein.atom_mask & kept)


def _pdb(proteins: Protein | Sequence[Protein]) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.pdb"
        write_structure(proteins, path)
        return path.read_text()
