"""Under which license a base model is: what its own card or config says, and nothing where neither does."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from nonpareil.models.adapters import adapter_base
from nonpareil.models.hub import hub_answers
from nonpareil.models.pretrained import read_config

_FIELDS = ("license", "license_name", "license_link")


def license_of(name_or_path: str, revision: str | None = None) -> dict[str, str]:
    """`license`, with `license_name` and `license_link`, of a folder or a hub model; of an adapter its base's.

    Empty where nothing is said, or nobody can be asked: a license is not guessed.
    """
    with suppress(Exception):  # whatever is wrong with a base's card, it is not the card that is written now
        if (base := adapter_base(name_or_path)) is not None:
            name_or_path, revision = base
        found = _of_card(name_or_path, revision)
        if "license" not in found:
            config = read_config(name_or_path, revision, subject=name_or_path)
            found = {"license": getattr(config, "license", None)}
        said = {name: found.get(name) for name in _FIELDS}
        return {name: value for name, value in said.items() if isinstance(value, str) and value.strip()}
    return {}


def _of_card(name_or_path: str, revision: str | None) -> dict[str, Any]:
    """The front matter of the model's card."""
    from huggingface_hub import ModelCard, model_info

    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        card = folder / "README.md"
        return ModelCard.load(card).data.to_dict() if card.is_file() else {}
    if not hub_answers():
        return {}
    data = model_info(name_or_path, revision=revision).card_data
    return {} if data is None else data.to_dict()
