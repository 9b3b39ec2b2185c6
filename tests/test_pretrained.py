"""Model files: what is saved comes back; what is damaged, mixed up or unknown is said in one line."""

import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from ophio import pretrained
from ophio.autoencoder import Autoencoder
from ophio.errors import UserError

ARGUMENTS = {"channels": [4, 6], "strides": [2], "latent_channels": 3}
CARD = {"name": "tiny", "description": "for tests"}


def make(seed: int = 0, **changes) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder(**ARGUMENTS | changes)


@pytest.fixture
def folder(tmp_path):
    pretrained.save(make(), ARGUMENTS, tmp_path, CARD)
    return tmp_path


def change_card(folder, **changes):
    file = folder / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_round_trip(folder):
    model, expected = pretrained.load(folder), make().state_dict()
    assert not model.training
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    card = pretrained.read_card(folder)
    assert card["arguments"] == ARGUMENTS and card["description"] == "for tests"
    assert card["parameters"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["", "model.safetensors", "model.json"])
def test_found_by_folder_or_file(name, folder):
    assert pretrained.find(folder / name) == folder / "model.json"
    assert isinstance(Autoencoder.from_pretrained(str(folder / name)), Autoencoder)


def test_released_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "RELEASED", tmp_path / "weights")
    assert pretrained.available() == []
    pretrained.save(make(), ARGUMENTS, tmp_path / "weights", CARD, name="tiny")
    assert pretrained.available() == ["tiny"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()  # a folder of that name that holds no model is no obstacle
    assert pretrained.load("tiny").state_dict().keys() == make().state_dict().keys()


@pytest.mark.parametrize("name", pretrained.available())
def test_released_models_load(name):
    card = pretrained.read_card(name)
    model = pretrained.load_diffusion(name)[0] if "autoencoder" in card else pretrained.load(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == card["parameters"]


def test_unknown_name():
    with pytest.raises(UserError, match="model nobody: not found; give a folder that training wrote, or one of"):
        pretrained.load("nobody")


@pytest.mark.parametrize("size", [0, 7, 200, -1])
def test_truncated_weights(size, folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match="model.safetensors: weights cannot be read.*incomplete or damaged"):
        pretrained.load(folder)


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.safetensors: weights cannot be read"):
        pretrained.load(folder)


def test_card_of_another_architecture(folder):
    change_card(folder, arguments=ARGUMENTS | {"latent_channels": 5})
    with pytest.raises(UserError, match="weights of another architecture.*tensors differ"):
        pretrained.load(folder)


def test_weights_of_another_training(folder):
    others = {key: value.contiguous() for key, value in make(seed=1).state_dict().items()}
    save_file(others, folder / "model.safetensors")
    with pytest.raises(UserError, match="not the weights that model.json describes"):
        pretrained.load(folder)


def test_flipped_bit(folder):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="not the weights that model.json describes"):
        pretrained.load(folder)


def test_card_without_a_hash_is_read(folder):
    card = json.loads((folder / "model.json").read_text())
    del card["weights_sha256"]
    (folder / "model.json").write_text(json.dumps(card))
    pretrained.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"format": 1}', b"\xff\xfe", b"\x80"])
def test_card_that_is_none(text, folder):
    (folder / "model.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match="model.json: not the card of an ophio model"):
        pretrained.load(folder)


def test_card_of_another_format(folder):
    change_card(folder, format=2)
    with pytest.raises(UserError, match="written in format 2, this ophio reads 1"):
        pretrained.load(folder)


@pytest.mark.parametrize(
    "arguments",
    [{}, [], *(ARGUMENTS | wrong for wrong in ({"odd": 1}, {"channels": [4]}, {"lmax": -3}, {"channels": [-4, 6]}))],
)
def test_card_of_no_model(arguments, folder):
    change_card(folder, arguments=arguments)
    with pytest.raises(UserError, match="describes no model that this ophio knows"):
        pretrained.load(folder)


def test_wrong_weights_leave_the_model_alone(folder):
    model = make(seed=2, latent_channels=5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match="another architecture"):
        pretrained.load_weights(model, folder)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_weights_that_fit_are_taken_where_only_those_are_asked_for(folder):
    model, released = make(seed=2, latent_channels=5), pretrained.load(folder).state_dict()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pretrained.load_weights(model, folder, partly=True)
    fits = {key for key, value in before.items() if value.shape == released[key].shape}
    assert 0 < len(fits) < len(before)
    for key, value in model.state_dict().items():
        assert torch.equal(value, released[key] if key in fits else before[key])
    with pytest.raises(UserError, match="another architecture"):
        pretrained.load_weights(torch.nn.Linear(2, 2), folder, partly=True)


def test_failed_save_leaves_the_earlier_files(folder, monkeypatch):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="cannot be written.*No space left"):
        pretrained.save(make(seed=1), ARGUMENTS, folder, CARD)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_save_interrupted_between_its_two_files(folder, monkeypatch):
    """New weights beside the old card are not mistaken for a model."""
    replace = os.replace

    def weights_only(source, target):
        if target.suffix == ".json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", weights_only)
    with pytest.raises(KeyboardInterrupt):
        pretrained.save(make(seed=1), ARGUMENTS, folder, CARD)
    with pytest.raises(UserError, match="not the weights that model.json describes"):
        pretrained.load(folder)


def test_files_can_be_shared(folder):
    """Readable as the umask allows, and weights any safetensors reader opens."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
    assert load_file(folder / "model.safetensors").keys() == make().state_dict().keys()
