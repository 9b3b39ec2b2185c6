"""Released weights, and any others: a folder with NAME.safetensors and its card NAME.json.

The card holds the constructor arguments and a hash of the weights, so that they cannot come apart, and says how the
model was made and what it reaches. Nothing here executes code from a file.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load as parse_weights
from safetensors.torch import save as serialise_weights

from torch import nn

from ophio.autoencoder import Autoencoder
from ophio.diffusion import DDPM, EDM, Denoiser, Flow, LatentDiffusion, Process
from ophio.errors import UserError
from ophio.files import write_whole
from ophio.latents import encoder_fingerprint

RELEASED = Path(__file__).parent / "weights"
FORMAT = 1
KNOWN = {f"{c.__module__}.{c.__name__}": c for c in (DDPM, EDM, Denoiser, Flow, LatentDiffusion, Process)} | {
    f"ophio.diffusion.{c.__name__}": c for c in (DDPM, EDM, Denoiser, Flow, LatentDiffusion, Process)
}  # what a card may ask to be constructed, by `_target_`: nothing else is

_CALLED: dict[type, str] = {Autoencoder: "an autoencoder", LatentDiffusion: "a diffusion model"}
Model = TypeVar("Model", Autoencoder, LatentDiffusion)


def available() -> list[str]:
    """Names of the released models."""
    return sorted(card.stem for card in RELEASED.glob("*.json"))


def find(model: str | Path) -> Path:
    """The card of a released model (by name), or of a file or folder that training wrote.

    Raises UserError where there is none, and says which models are released.
    """
    path = Path(model)
    if (path / "model.json").is_file():
        path = path / "model.json"
    elif path.suffix == ".safetensors":
        path = path.with_suffix(".json")
    elif path.suffix != ".json":
        path = RELEASED / f"{model}.json"
    if not path.is_file():
        found = "no model.json in this folder: has its training ended?" if Path(model).is_dir() else "not found"
        names = ", ".join(available()) or "(no released models here)"
        raise UserError(f"model {model}: {found}; give a folder that training wrote, or one of: {names}")
    return path


def read_card(model: str | Path) -> dict[str, Any]:
    """What the card of a model says (see `find`). Raises UserError where it is none, or of another format."""
    path = find(model)
    try:
        card = json.loads(path.read_text())
        card["arguments"], card["format"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not the card of an ophio model") from None
    if card["format"] != FORMAT:
        raise UserError(f"{path}: written in format {card['format']}, this ophio reads {FORMAT}")
    return card


def load(model: str | Path) -> Autoencoder:
    """An autoencoder with its weights, ready for use (evaluation mode).

    Raises UserError where there is none of that name, another kind of model, or one whose weights are not its card's.
    """
    return _load(model, Autoencoder)


def load_diffusion(model: str | Path) -> tuple[LatentDiffusion, Autoencoder]:
    """A diffusion model and the autoencoder that its latents are of, ready for use.

    The autoencoder is the one that the card names, a path relative to the card or to the working folder. Raises UserError
    where its weights are not those that the diffusion model was trained with.
    """
    diffusion = _load(model, LatentDiffusion)
    card, path = read_card(model), find(model)
    name = card["autoencoder"]
    beside = path.parent / name
    autoencoder = load(beside if beside.exists() else name)
    if encoder_fingerprint(autoencoder) != card["encoder"]:
        raise UserError(
            f"{path}: trained on latents of another encoder than that of {name} here: restore or retrain them"
        )
    return diffusion, autoencoder


def _load(model: str | Path, kind: type[Model]) -> Model:
    card, path = read_card(model), find(model)
    found = LatentDiffusion if "autoencoder" in card else Autoencoder
    if found is not kind:
        raise UserError(f"model {model}: {_CALLED[found]}, where {_CALLED[kind]} is needed; see `ophio models`")
    try:
        module: Any = _build(card["arguments"]) if kind is LatentDiffusion else Autoencoder(**card["arguments"])
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise UserError(f"{path}: describes no model that this ophio knows ({error})") from None
    load_weights(module, model)
    return module.eval()


def _build(spec: Any) -> Any:
    """Constructs `_target_` of a nested description, from the classes in KNOWN alone."""
    if not isinstance(spec, Mapping):
        return spec
    arguments = {key: _build(value) for key, value in spec.items() if key != "_target_"}
    return KNOWN[spec["_target_"]](**arguments) if "_target_" in spec else arguments


def load_weights(module: nn.Module, model: str | Path, partly: bool = False) -> None:
    """Replaces the weights. Raises UserError where they are broken, of another architecture, or not the card's.

    `partly`: only those that have the same name and shape in both, for training to start from a model of another
    latent or width; refused where none has.
    """
    card = read_card(model)
    path = find(model).with_suffix(".safetensors")
    try:
        data = path.read_bytes()
        weights = parse_weights(data)
    except (OSError, SafetensorError) as error:
        advice = "incomplete or damaged, copy or train them again"
        raise UserError(f"{path}: weights cannot be read ({error}): {advice}") from None
    expected = module.state_dict()
    shapes = {key: tuple(value.shape) for key, value in expected.items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    odd = sorted(key for key in shapes | found if shapes.get(key) != found.get(key))
    if odd and not (partly and len(odd) < len(shapes | found)):
        first = f"{odd[0]} is {found.get(odd[0], 'absent')} in the file, {shapes.get(odd[0], 'absent')} in the model"
        raise UserError(f"{path}: weights of another architecture ({first}; {len(odd)} tensors differ in all)")
    if card.get("weights_sha256") not in (None, hashlib.sha256(data).hexdigest()):
        raise UserError(f"{path}: not the weights that {find(model).name} describes: copy both files, or train again")
    module.load_state_dict(expected | {key: value for key, value in weights.items() if key not in odd})


def save(
    module: nn.Module, arguments: Mapping[str, Any], folder: Path, card: dict, name: str = "model", half: bool = False
) -> None:
    """Writes folder/NAME.safetensors and folder/NAME.json; each appears complete or not at all.

    `arguments`: those `module` was constructed with. `half`: store the weights in 16 bits, for half the size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().contiguous().cpu() for key, value in module.state_dict().items()}
    if half:
        tensors |= {key: tensors[key].half() for key, _ in module.named_parameters()}  # not units and other buffers
    data = serialise_weights(tensors)
    made = {
        "format": FORMAT,
        "arguments": dict(arguments),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "weights_sha256": hashlib.sha256(data).hexdigest(),
    }
    write_whole(folder / f"{name}.safetensors", data)
    write_whole(folder / f"{name}.json", (json.dumps(made | card, indent=2) + "\n").encode())
