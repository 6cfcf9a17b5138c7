"""The temperature that a policy was trained at, kept beside its weights: drawn at another, it is another policy."""

import json
import math
from pathlib import Path

from transformers.utils.hub import cached_file

from nonpareil.errors import ModelError
from nonpareil.files import write_json
from nonpareil.models.hub import hub_or_cache

SAMPLING_FILE = "sampling.json"


def keep_temperature(folder: str | Path, temperature: float) -> None:
    """Write it beside saved weights; their generation config stays the base's, which says how to serve."""
    write_json(Path(folder) / SAMPLING_FILE, {"temperature": temperature})


def trained_temperature(name_or_path: str, revision: str | None = None) -> float | None:
    """What a directory or a hub model says of it; None where nothing does, as of a model that we did not train.

    Raises:
        ModelError: a file that does not hold a number above 0.
    """
    path = Path(name_or_path).expanduser() / SAMPLING_FILE
    if not path.parent.is_dir():
        with hub_or_cache(name_or_path):
            found = cached_file(
                name_or_path,
                SAMPLING_FILE,
                revision=revision,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        if found is None:
            return None
        path = Path(found)
    if not path.is_file():
        return None
    try:
        temperature = json.loads(path.read_text(encoding="utf-8"))["temperature"]
        if isinstance(temperature, bool) or not (0 < temperature < math.inf):
            raise ValueError(f"temperature={temperature!r} is no number above 0")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{str(path)!r} should hold the temperature that the model was trained at, as "
            f'{{"temperature": 0.7}}: {error}; mend the file, or delete it and give temperature'
        ) from error
    return float(temperature)
