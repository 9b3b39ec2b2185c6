"""Pages to look at structures with, drawn by 3Dmol.js (Rego & Koes 2015, Bioinformatics 31:1322) through py3Dmol.

A page is one file: structures, curves, styles and scripts are inside. 3Dmol.js itself comes from the web when the page is
opened, unless a local copy was named (`viewer_js`, or the environment variable OPHIO_3DMOL), which is then put inside, too.
"""

import base64
import gzip
import html
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import py3Dmol
import torch
from jaxtyping import Float
from torch import Tensor

from ophio.constants import CB
from ophio.errors import UserError
from ophio.geometry import kabsch, safe_norm, transform
from ophio.io import write_structure
from ophio.protein import Protein
from ophio.tables import text_of

SHOWN = 50  # structures in a grid at most: a page stays a few megabytes
VARIABLE = "OPHIO_3DMOL"
ANYWAY = ("rainbow", "secondary structure")  # colours of every page; assets/viewer.js draws them and the others
DEVIATION, B_FACTOR, CONFIDENCE = "deviation", "B-factor", "confidence"
LEAST_RANGE = 0.5  # Å: smaller deviations are not stretched over all colours
QUANTILE = 0.95  # of the values: where the last colour begins
PLOT = (48, 8, 228, 96)  # of the curves in a plot: left, top, width, height
PLOT_SIZE = (280, 122)
_COLOURS = ("#1f6feb", "#d9482b", "#2b9348", "#8250df")


@dataclass(frozen=True)
class Entry:
    """A structure in a grid; `original` is drawn with it in grey, and `deviation` colours it by residue."""

    protein: Protein
    name: str
    caption: str
    original: Protein | None = None
    deviation: Float[Tensor, " L"] | None = None  # Å


def overlay(predicted: Protein, original: Protein, name: str, caption: str) -> Entry:
    """A chain with another of the same residues superposed on it, coloured by the distances of their CA."""
    predicted, original = (protein.map(Tensor.detach) for protein in (predicted, original))
    both = predicted.residue_mask & original.residue_mask
    rotation, translation = kabsch(original.ca, predicted.ca, both)
    moved = original.with_positions(transform(original.positions.flatten(0, 1), rotation, translation).view(-1, 14, 3))
    return Entry(predicted, name, caption, moved, safe_norm(moved.ca - predicted.ca) * both)


def grid_page(
    entries: Sequence[Entry], title: str, note: str = "", total: int | None = None, viewer_js: str | None = None
) -> str:
    """An HTML page with a card for each structure: `grid` has the arguments."""
    return document(title, paragraph(note) + grid(entries, total, viewer_js))


def grid(entries: Sequence[Entry], total: int | None = None, viewer_js: str | None = None) -> str:
    """Part of an HTML page, once in it: a card for each structure with its picture, caption and download.

    Colours can be chosen: rainbow from the N- to the C-terminus, secondary structure; B-factor where there are any, as
    confidence where they are percentages; deviation where an entry has it. A click opens a structure to turn.

    Args:
        entries: at least one; the first 50 are shown.
        total: how many structures there are, where more than `entries`.
        viewer_js: a local copy of 3Dmol.js to put into the page, or its address.
    """
    left_out = (total or len(entries)) - len(entries[:SHOWN])
    entries = entries[:SHOWN]
    ranges = _ranges(entries)
    data = {"structures": [_content(entry) for entry in entries], "ranges": ranges}
    cards = "\n".join(_card(entry) for entry in entries)
    original = '<label><input type="checkbox" id="original" checked>original (grey)</label>'
    more = paragraph(f"{len(entries)} are shown here, {left_out} more are left out.") if left_out > 0 else ""
    return f"""{_top(viewer_js)}{more}
<div class="bar"><label>Colour {_choice("scheme", ranges)}</label><span class="legend" id="legend"></span></div>
<div class="cards">
{cards}
</div>
<div id="stage" role="dialog"><div class="sheet">
<div class="bar"><span class="grow"><b id="name"></b> <span class="note" id="about"></span></span>
<button id="previous">Previous</button><button id="next">Next</button><button id="save">Download PDB</button>
<button id="close">Close</button></div>
<div class="bar"><label>Colour {_choice("scheme-large", ranges)}</label>
<span class="legend" id="legend-large"></span>
<label><input type="checkbox" id="sidechains">side chains</label>
{original if any(entry.original is not None for entry in entries) else ""}</div>
<div class="view">{_viewer("large", viewer_js)}</div>
</div></div>
<div id="studio">{_viewer("studio", viewer_js)}</div>
{_bottom(data, "grid.js")}
<footer>Click a structure to enlarge it; drag to turn, scroll to zoom. Drawn by 3Dmol.js.</footer>"""


def path_page(
    frames: Sequence[Protein],
    title: str,
    curves: Mapping[str, Mapping[str, Sequence[float | None]]],
    rows: Sequence[Mapping[str, Any]] = (),
    viewer_js: str | None = None,
) -> str:
    """An HTML page with the backbones of a path, a slider and a play button, plots beside them, and a table.

    Args:
        curves: by plot and line, a value a frame (None for no value).
        rows: of the table.
        viewer_js: a local copy of 3Dmol.js to put into the page, or its address.
    """
    backbones = [_backbone(frame) for frame in frames]
    plots = "\n".join(_plot(name, lines) for name, lines in curves.items())
    body = f"""{_top(viewer_js)}
<div class="path"><div>
<div class="view">{_viewer("path", viewer_js)}</div>
<div class="bar"><button id="play">Play</button>
<input id="frame" type="range" min="0" max="{len(frames) - 1}" value="0" aria-label="frame">
<output>frame <span id="shown">1 of {len(frames)}</span></output></div>
<div class="bar"><label>Colour {_choice("scheme", ANYWAY)}</label><span class="legend" id="legend"></span></div>
</div>
<div class="curves">
{plots}
</div></div>
{html_table(rows)}
{_bottom({"frames": _pdb(backbones), "ranges": {}}, "path.js")}
<footer>Drag to turn, scroll to zoom; a click on a plot goes to its frame. Drawn by 3Dmol.js.</footer>"""
    return document(title, body)


def document(title: str, body: str) -> str:
    """A whole HTML page in the style of all of them."""
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    style = f"<style>\n{_asset('page.css')}</style>"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}\n{style}</head>\n'
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def paragraph(text: str) -> str:
    """A note in the page; nothing for no text."""
    return f'<p class="note">{html.escape(text)}</p>' if text else ""


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row a mapping, the columns are the keys of the first; nothing for no rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(key)}</th>" for key in rows[0])
    lines = ("".join(f"<td>{html.escape(text_of(value))}</td>" for value in row.values()) for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def check_viewer(viewer_js: str | None = None) -> None:
    """Raises UserError where `viewer_js` (default: $OPHIO_3DMOL) names no 3Dmol.js; asks before work is done."""
    _local_viewer(viewer_js)


# 3Dmol.js


def _address(viewer_js: str | None) -> str | None:
    """Where pages find 3Dmol.js on the web; None: where py3Dmol says."""
    where = viewer_js or os.environ.get(VARIABLE, "")
    return where if where.startswith(("http://", "https://")) else None


def _local_viewer(viewer_js: str | None) -> str | None:
    """The content of the local copy, None where there is none."""
    where, said_by = (viewer_js, "--viewer-js") if viewer_js else (os.environ.get(VARIABLE), VARIABLE)
    if not where or _address(where):
        return None
    try:
        text = Path(where).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{said_by} {where}: cannot be read ({error.strerror}): name a copy of 3Dmol-min.js") from None
    if 'exports["3Dmol"]' not in text:
        what = "is not 3Dmol.js: name build/3Dmol-min.js of the npm package 3dmol"
        raise UserError(f"{said_by} {where}: {what}")
    return text


def _top(viewer_js: str | None) -> str:
    """Comes first in a page with viewers: where trouble is told, and 3Dmol.js itself where it is a local copy."""
    told = f'<p id="trouble"></p>\n<script>\n{_asset("trouble.js")}</script>'
    text = _local_viewer(viewer_js)
    if text is None:
        return told
    text = text.replace("</script", "<\\/script")
    return f"{told}\n<script>{text}</script>\n<script>var $3Dmolpromise = Promise.resolve();</script>"  # py3Dmol's name


def _viewer(name: str, viewer_js: str | None) -> str:
    """An empty viewer as large as what it is in; `viewer_NAME` to scripts."""
    address = _address(viewer_js)
    view = py3Dmol.view(width="100%", height="100%", **({} if address is None else {"js": address}))
    text = view.write_html()
    return text.replace(view.uniqueid, name)  # which is the time: equal pages are equal files


def _bottom(data: Mapping[str, Any], script: str) -> str:
    """Comes last: the data, packed, and the page's own script."""
    packed = base64.b64encode(gzip.compress(json.dumps(data).encode(), 6, mtime=0)).decode()
    return (
        f'<script type="text/plain" id="data">{packed}</script>\n'
        f"<script>\n{_asset('viewer.js')}\n{_asset(script)}</script>"
    )


def _asset(name: str) -> str:
    return files("ophio").joinpath("assets").joinpath(name).read_text(encoding="utf-8")


# Colours


def _ranges(entries: Sequence[Entry]) -> dict[str, tuple[float, float] | None]:
    """By the colours that can be chosen, the first of them chosen: the values between which they change."""
    ranges: dict[str, tuple[float, float] | None] = {}
    deviations = [entry.deviation[entry.protein.residue_mask] for entry in entries if entry.deviation is not None]
    if deviations:
        high = float(torch.cat(deviations).quantile(QUANTILE))
        ranges[DEVIATION] = (0.0, float(f"{max(high, LEAST_RANGE):.2g}"))
    ranges |= dict.fromkeys(ANYWAY)
    b_factors = torch.cat([entry.protein.b_factor[entry.protein.atom_mask] for entry in entries])
    if b_factors.any():
        low, high = (round(float(b_factors.quantile(q)), 1) for q in (1 - QUANTILE, QUANTILE))
        ranges[B_FACTOR] = (low, high)
        if b_factors.min() >= 0 and b_factors.max() <= 100:
            ranges[CONFIDENCE] = None
    return ranges


def _choice(name: str, colours: Iterable[str]) -> str:
    return f'<select id="{name}">{"".join(f"<option>{colour}</option>" for colour in colours)}</select>'


# Structures


def _content(entry: Entry) -> dict[str, Any]:
    protein = _named_for_pdb(entry.protein)
    content: dict[str, Any] = {"file": f"{Path(entry.name).stem}.pdb", "pdb": _pdb(protein)}
    if entry.original is not None:
        content["original"] = _pdb(_named_for_pdb(entry.original))
    if entry.deviation is not None:
        names = zip(protein.residue_number.tolist(), map(chr, protein.insertion_code.tolist()), strict=True)
        values = zip(names, entry.deviation.tolist(), strict=True)
        content["values"] = {f"{number}{code.strip()}": round(value, 3) for (number, code), value in values}
    return content


def _card(entry: Entry) -> str:
    name, caption = html.escape(entry.name), html.escape(entry.caption)
    return (
        f'<div class="card"><button class="open" aria-label="enlarge {name}"><img alt=""></button>'
        f'<div class="text"><b>{name}</b><span class="caption">{caption}</span>'
        '<button class="save">Download PDB</button></div></div>'
    )


def _backbone(protein: Protein) -> Protein:
    """What a cartoon is drawn from, under the names of the residues."""
    kept = torch.arange(protein.atom_mask.shape[-1]) < CB
    return _named_for_pdb(protein.replace(atom_mask=protein.atom_mask & kept))


def _named_for_pdb(protein: Protein) -> Protein:
    """Long chain ids and residue numbers, which only mmCIF holds, made short."""
    number = protein.residue_number
    if number.min() < -999 or number.max() > 9999:
        number = torch.arange(1, protein.num_residues + 1)
    return protein.replace(chain_id=protein.chain_id[:1], residue_number=number)


def _pdb(proteins: Protein | Sequence[Protein]) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.pdb"
        write_structure(proteins, path)
        return path.read_text()


# Curves


def _plot(name: str, lines: Mapping[str, Sequence[float | None]]) -> str:
    """A small SVG plot of values by frame, from 0 to the highest, with a mark at the frame that is shown."""
    values = [value for line in lines.values() for value in line if value is not None]
    top, count = max(values, default=0.0) or 1.0, max(map(len, lines.values()))
    left, up, width, height = PLOT
    down, right = up + height, left + width
    colours = dict(zip(lines, _COLOURS, strict=False))
    drawn = "".join(_polyline(line, top, colours[label]) for label, line in lines.items())
    key = "".join(
        f'<span style="color:{colours[label]}" data-values="{json.dumps(line)}">{html.escape(label)} <b></b></span>'
        for label, line in lines.items()
    )
    return f"""<figure><figcaption>{html.escape(name)}</figcaption>
<svg viewBox="0 0 {PLOT_SIZE[0]} {PLOT_SIZE[1]}" data-left="{left}" data-width="{width}">
<path d="M{left} {up}V{down}H{right}" fill="none" stroke="#b9c4ce"/>
<text x="{left - 4}" y="{up + 8}" text-anchor="end">{top:.3g}</text>
<text x="{left - 4}" y="{down}" text-anchor="end">0</text>
<text x="{left}" y="{down + 13}">1</text><text x="{right}" y="{down + 13}" text-anchor="end">frame {count}</text>
<line class="now" x1="0" x2="0" y1="{up}" y2="{down}" stroke="#1d2733" stroke-dasharray="3 2"/>
{drawn}</svg><div class="key">{key}</div></figure>"""


def _polyline(values: Sequence[float | None], top: float, colour: str) -> str:
    left, up, width, height = PLOT
    across = max(1, len(values) - 1)
    points = [(left + width * k / across, up + height * (1 - v / top)) for k, v in enumerate(values) if v is not None]
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="1.8"/>\n'
