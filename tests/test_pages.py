"""Pages: what is in them, and what a browser makes of them. See docs/viewing.md for how to run the tests with a browser."""

import base64
import gzip
import json
import os
import runpy
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from adk import CLOSED, DATA, OPEN, read
from browser import Browser, find_chromium

from ophio.cli import main
from ophio.errors import UserError
from ophio.io import read_structure, write_structure
from ophio.pages import SHOWN, VARIABLE, Entry, check_viewer, document, grid, grid_page, html_table, overlay, path_page
from ophio.plots import available, read_training
from ophio.protein import Protein

VIZ = Path(__file__).parents[1] / "viz"
FAKE = 'var $3Dmol; exports["3Dmol"]; "</script>"'  # what tells a classic build of 3Dmol.js
NOWHERE = "http://127.0.0.1:9/3Dmol-min.js"
LOCAL = os.environ.get(VARIABLE, "")

chromium = pytest.mark.skipif(find_chromium() is None, reason="needs the program chromium (see docs/viewing.md)")
viewer = pytest.mark.skipif(
    not Path(LOCAL).is_file(), reason=f"needs a copy of 3Dmol.js in {VARIABLE} (see docs/viewing.md)"
)


@pytest.fixture(autouse=True)
def no_default(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def chain(name: str = OPEN, length: int = 40) -> Protein:
    return read(name)[1].crop(0, length)


def packed(page: str) -> dict:
    text = page.partition('id="data">')[2].partition("</script>")[0]
    return json.loads(gzip.decompress(base64.b64decode(text)))


def entries(count: int = 3) -> list[Entry]:
    shifted = chain().replace(b_factor=torch.linspace(20, 100, 40)[:, None].expand(-1, 14))
    return [Entry(shifted, f"chain <{k}>.pdb", f"number {k}") for k in range(count)]


def path() -> str:
    a, b = chain(), chain(CLOSED)
    frames = [a.with_positions(a.positions + t * (b.positions - a.positions)) for t in torch.linspace(0, 1, 4)]
    return path_page(
        frames, "a path", {"distance": {"from": [0.0, 1.0, 2.0, 4.0], "to": [4.0, None, 1.0, 0.0]}}, [{"": "x"}], LOCAL
    )


# what is in a page


def test_a_grid_has_cards_captions_and_structures():
    page = grid_page(entries(), "Title & more", "a note", total=60)
    assert page.count('class="card"') == 3 and "<title>Title &amp; more</title>" in page
    assert "chain &lt;2&gt;.pdb" in page and "<2>" not in page and "number 2" in page and "57 more are left out" in page
    data = packed(page)
    assert list(data["ranges"]) == ["rainbow", "secondary structure", "B-factor", "confidence"]
    assert data["ranges"]["B-factor"] == pytest.approx([24, 96], abs=3)
    assert data["structures"][1]["file"] == "chain <1>.pdb" and data["structures"][1]["pdb"].startswith("ATOM")


def test_colours_are_offered_where_there_are_values():
    plain = [Entry(chain(), "a", "b")]
    assert list(packed(grid_page(plain, "t"))["ranges"]) == ["rainbow", "secondary structure"]
    large = [Entry(chain().replace(b_factor=torch.full((40, 14), 130.0)), "a", "b")]
    assert list(packed(grid_page(large, "t"))["ranges"]) == ["rainbow", "secondary structure", "B-factor"]


def test_a_page_shows_so_many_and_no_more():
    page = grid_page([Entry(chain(length=4), f"s{k}", "") for k in range(SHOWN + 2)], "t")
    assert page.count('class="card"') == SHOWN == len(packed(page)["structures"]) and "2 more are left out" in page


def test_an_overlay_superposes_and_colours_by_distance():
    still, turned = chain(), torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    positions = still.positions.clone()
    positions[5] += torch.tensor([0.0, 0.0, 3.0])
    moved = still.with_positions(positions)
    entry = overlay(moved, still.rotate(turned), "a.pdb", "")
    assert entry.deviation.argmax() == 5 and 2.5 < entry.deviation[5] < 3 and entry.deviation[20] < 0.4
    data = packed(grid_page([entry], "t"))
    assert next(iter(data["ranges"])) == "deviation" and len(data["structures"][0]["values"]) == 40
    assert data["structures"][0]["values"]["6"] == pytest.approx(float(entry.deviation[5]), abs=1e-3)


def test_names_that_only_mmcif_holds_are_shortened():
    long = chain().replace(chain_id="AAA", residue_number=torch.arange(40) + 20_000)
    (structure,) = packed(grid_page([overlay(long, long, "a.cif", "")], "t"))["structures"]
    assert structure["pdb"][21:26] == "A   1" and "40" in structure["values"] and structure["file"] == "a.pdb"


def test_equal_pages_are_equal_files():
    assert grid_page(entries(), "t") == grid_page(entries(), "t") and path() == path()


# 3Dmol.js


def test_3dmol_comes_from_the_web_unless_told(tmp_path, monkeypatch):
    copy = tmp_path / "3Dmol-min.js"
    copy.write_text(FAKE)
    assert "cdn" in grid_page(entries(), "t") and FAKE[:20] not in grid_page(entries(), "t")
    assert f"'{NOWHERE}'" in grid_page(entries(), "t", viewer_js=NOWHERE)
    inlined = grid_page(entries(), "t", viewer_js=str(copy))
    assert 'exports["3Dmol"]; "<\\/script>"' in inlined and FAKE not in inlined
    monkeypatch.setenv(VARIABLE, str(copy))
    assert grid_page(entries(), "t") == inlined


def test_a_copy_that_is_none(tmp_path, monkeypatch):
    (tmp_path / "page.js").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"--viewer-js .*page.js: is not 3Dmol.js: name build/3Dmol-min.js"):
        check_viewer(str(tmp_path / "page.js"))
    monkeypatch.setenv(VARIABLE, "absent.js")
    with pytest.raises(UserError, match=f"{VARIABLE} absent.js: cannot be read"):
        check_viewer()


@pytest.mark.parametrize(
    "command",
    [
        ["reconstruct", str(DATA / OPEN), "--out", "out"], ["sample", "--out", "out"], ["evaluate", ".", "--out", "out"],
        ["interpolate", str(DATA / OPEN), str(DATA / CLOSED), "--out", "out/path.pdb"],
    ],
)  # fmt: skip
def test_commands_complain_before_they_work(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--viewer-js", "absent.js"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ophio: --viewer-js absent.js: cannot be read") and said.count("\n") == 1
    assert not Path("out").exists()


# viz


@pytest.fixture
def viz(monkeypatch, capsys, tmp_path):
    """Runs a script of viz/ in `tmp_path`: exit status, what is printed or complained of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(VIZ)

    def run(script: str, *arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            runpy.run_path(str(VIZ / script), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def colours_in(png: bytes) -> int:
    image = pytest.importorskip("matplotlib.image").imread(BytesIO(png))
    return len(np.unique(image.reshape(-1, image.shape[-1]), axis=0))


needs_matplotlib = pytest.mark.skipif(not available(), reason="needs matplotlib")


@needs_matplotlib
def test_plots(viz):
    """Each script draws more than an empty frame."""
    Path("in").mkdir()
    for k, length in enumerate((60, 80, 100)):
        write_structure(chain(length=length), f"in/{k}.pdb")
    names = "stride,numbers_per_residue,ca_rmsd_median,all_atom_rmsd_median,residue_accuracy"
    Path("table.csv").write_text(f"{names}\n1,15,0.1,0.2,0.9\n8,5,0.5,0.9,0.4\n")
    Path("report").mkdir()
    records = [{"group": "samples", "scrmsd": 1.0 + k, "sctm": 0.9 - k / 10} for k in range(5)]
    Path("report/records.jsonl").write_text("\n".join(map(json.dumps, [*records, {"group": "samples", "failed": "x"}])))
    log(
        {
            0: "epoch,step,train/loss,val/loss\n0,9,2.0,\n0,9,,1.5\n0,19,1.8,\n",
            1: "epoch,step,train/loss,val/loss\n0,19,1.1,1.4\n",
        }
    )
    scripts = {"curve": ["table.csv"], "ramachandran": ["in"], "scores": ["report"], "training": ["run"]}
    for name, arguments in (scripts | {"latents": ["in", "--colour", "length"]}).items():
        status, said = viz(f"{name}.py", *arguments, "--out", f"{name}.png")
        assert status == 0 and said == f"{name}.png\n", said
        assert colours_in(Path(f"{name}.png").read_bytes()) > 20, name


def log(versions: dict[int, str]) -> None:
    for number, text in versions.items():
        file = Path(f"run/logs/version_{number}/metrics.csv")
        file.parent.mkdir(parents=True)
        file.write_text(text)


def test_starts_of_a_run_are_joined(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head = "epoch,step,train/loss\n"
    log({2: "", 0: f"{head}0,9,5\n0,19,4\n0,29,3\n", 10: f"{head}0,29,1\n", 1: f"{head}0,19,2\n"})
    assert read_training(Path("run")) == ({"train/loss": ([9, 19, 29], [5.0, 2.0, 1.0])}, [19, 29])


@needs_matplotlib
def test_viz_says_in_one_line_what_is_wrong(viz):
    Path("empty").mkdir()
    Path("table.csv").write_text("stride\n1\n")
    write_structure(chain(), "one.pdb")
    Path("path.json").write_text("{}")
    write_structure([chain(), chain()], "path.pdb")
    wrong = {
        ("curve.py", "table.csv"): "table.csv: lacks the column numbers_per_residue",
        ("curve.py", "absent.csv"): "absent.csv: cannot be read as a CSV table",
        ("ramachandran.py", "empty"): "empty: no structure in this folder",
        ("training.py", "empty"): "empty: no logs/version_N/metrics.csv",
        ("latents.py", "one.pdb"): "1 chains: a map needs at least 3",
        ("scores.py", "empty"): "empty/records.jsonl: cannot be read",
        ("grid.py", "absent.pdb"): "absent.pdb: ",
        ("overlay.py", "one.pdb", "absent.pdb"): "absent.pdb: ",
        ("path.py", "path.pdb"): "path.json: not a report of a path",
    }
    for arguments, message in wrong.items():
        status, said = viz(*arguments, "--out", "out")
        assert status == 2 and said.startswith(f"ophio: {message}") and said.count("\n") == 1, said


def test_pages_of_viz(viz):
    Path("in").mkdir()
    for name in (OPEN, CLOSED):
        write_structure(chain(name), f"in/{name}")
    write_structure([chain(), chain(CLOSED)], "path.pdb")
    assert viz("grid.py", "in", "--out", "grid.html") == (0, "grid.html\n")
    assert Path("grid.html").read_text().count('class="card"') == 2
    assert viz("overlay.py", f"in/{OPEN}", f"in/{CLOSED}", "--out", "overlay.html")[0] == 0
    assert "deviation" in packed(Path("overlay.html").read_text())["ranges"]
    assert viz("path.py", "path.pdb", "--out", "path.html")[0] == 0
    assert packed(Path("path.html").read_text())["frames"].count("MODEL") == 2


# in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(find_chromium(), tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture
def show(browser, tmp_path):
    def opened(page: str) -> Browser:
        file = tmp_path / "page.html"
        file.write_text(page, encoding="utf-8")
        browser.open(file)
        browser.wait_for("document.body.dataset.drawn")
        return browser

    return opened


LEGEND = "document.getElementById('legend').textContent"
PICTURES = "[...document.querySelectorAll('.card img')].map((image) => image.src)"


ATOMS = "viewer_large.selectedAtoms({}).length"


def pictures(browser: Browser) -> list[bytes]:
    return [base64.b64decode(source.partition(",")[2]) for source in browser.run(PICTURES)]


def choose(element: str, value: str, event: str) -> str:
    return f"{element}.value = '{value}'; {element}.dispatchEvent(new Event('{event}'))"


@chromium
@viewer
def test_a_grid_in_a_browser(show, tmp_path):
    tables = html_table([{"a": 1}])
    page = show(document("Evaluation", tables + grid(entries(2), viewer_js=LOCAL)))
    assert page.problems == [] and page.run("document.getElementById('trouble').style.display") == ""
    rainbow = pictures(page)
    assert len(rainbow) == 2 and all(colours_in(picture) > 100 for picture in rainbow)
    page.run(choose("scheme", "confidence", "change"))
    page.wait_for("document.body.dataset.drawn === 'confidence'")
    assert pictures(page)[0] != rainbow[0] and "above 90" in page.run(LEGEND)
    before = page.screenshot()
    assert colours_in(before) > 100
    page.run("document.querySelectorAll('.open')[1].click()")
    assert page.run("getComputedStyle(stage).visibility") == "visible" and page.run("next.disabled")
    assert page.screenshot() != before
    page.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "got"))
    page.run("save.click()")
    got = tmp_path / "got" / "chain _1_.pdb"
    for _ in range(100):
        if got.exists():
            break
        page.run("new Promise((resolve) => setTimeout(resolve, 100))")
    assert read_structure(got).sequence == chain().sequence
    page.run("document.getElementById('close').click()")
    assert page.run("getComputedStyle(stage).visibility") == "hidden" and page.problems == []


@chromium
@viewer
def test_an_overlay_in_a_browser(show):
    moved = chain().with_positions(chain().positions + torch.linspace(0, 3, 40)[:, None, None].cos())
    page = show(grid_page([overlay(moved, chain(), "a.pdb", "caption")], "Overlay", viewer_js=LOCAL))
    page.run("document.querySelector('.open').click()")
    assert page.run(ATOMS) == 2 * int(chain().atom_mask.sum())
    page.run("document.getElementById('original').click()")
    assert page.run(ATOMS) == int(chain().atom_mask.sum())
    both = page.run("viewer_large.pngURI()")
    page.run("sidechains.click()")
    assert page.run("viewer_large.pngURI()") != both and page.problems == []


@chromium
@viewer
def test_a_path_in_a_browser(show):
    page = show(path())
    first, value = page.screenshot(), "document.querySelector('[data-values] b').textContent"
    assert page.problems == [] and colours_in(first) > 100
    assert page.run("viewer_path.getFrame()") == 0 and page.run(value) == "0"
    page.run(choose("document.getElementById('frame')", "3", "input"))
    page.wait_for("viewer_path.getFrame() === 3")
    assert page.run("shown.textContent") == "4 of 4" and page.run(value) == "4"
    assert page.screenshot() != first
    page.run("document.getElementById('play').click()")
    page.wait_for("viewer_path.getFrame() === 1")
    page.run("document.getElementById('play').click()")
    page.run(choose("scheme", "secondary structure", "change"))
    assert "helix" in page.run(LEGEND) and page.problems == []


@chromium
def test_a_page_tells_where_3dmol_did_not_load(browser, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(grid_page(entries(1), "t", viewer_js=NOWHERE), encoding="utf-8")
    browser.open(file)
    browser.wait_for("trouble.style.display === 'block'")
    assert f"did not load from {NOWHERE}" in browser.run("trouble.textContent")
    assert "--viewer-js" in browser.run("trouble.textContent")
