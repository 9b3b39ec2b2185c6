"""`ophio doctor` tells of any installation, broken ones too."""

import pytest

from ophio import doctor, pretrained
from ophio.cli import main


def test_the_report_names_versions_devices_models_and_optional_parts(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(f"{part}:" in out for part in ("ophio", "devices", "models", "optional", "cpu"))
    assert all(f"{name} " in out for name in doctor.REQUIRED) and "MISSING" not in out
    assert all(f"  {name}: " in out for name in pretrained.available()) and "DAMAGED" not in out
    assert all(name in out for name, _, _ in doctor.OPTIONAL.values())


def test_what_is_missing_is_told_with_how_to_get_it(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda module: None)
    monkeypatch.setattr(doctor, "_version", lambda distribution: None)
    report = doctor.report()
    assert "torch MISSING" in report
    assert all(f"not here; {use}: {how}" in report for _, use, how in doctor.OPTIONAL.values())


@pytest.mark.parametrize("spoil", ["damaged", "gone", "no card"])
def test_weights_that_do_not_serve_are_told(spoil, tmp_path, monkeypatch):
    card = '{"format": 1, "arguments": {}, "weights_sha256": "0"}' if spoil != "no card" else "{"
    (tmp_path / "a.json").write_text(card)
    if spoil != "gone":
        (tmp_path / "a.safetensors").write_bytes(b"x")
    monkeypatch.setattr(pretrained, "RELEASED", tmp_path)
    said = {"damaged": "a: DAMAGED weights", "gone": "a: NO WEIGHTS", "no card": "cannot be found out (UserError"}[
        spoil
    ]
    assert said in doctor.report()
