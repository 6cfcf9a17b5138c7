"""Whether what was loaded can be saved again: asked before a training, not after it."""

import copy
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.errors import ModelError
from nonpareil.models.distributed import process_index
from nonpareil.models.endings import settle_endings
from nonpareil.records import Prompt
from nonpareil.terminal import reason_of, tell

_SAMPLING = ("temperature", "top_p", "min_p", "top_h", "typical_p", "top_k", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "length_penalty")
_OTHERS = ("pad_token_id",)  # -1, which early LLaMA configs have for none


def prepare_saving(model: PreTrainedModel, tokenizer: Tokenizer, prompts: Sequence[Prompt] = ()) -> None:
    """Make sure that what is trained can be saved in the end, and say what its generation config loses and gains.

    It says where completions of these prompts end, so that what is saved ends there too.

    Raises:
        ModelError: as `check_savable`.
    """
    if (idle := mend_generation_config(model)) and process_index() == 0:
        values = ", ".join(f"{name}={value!r}" for name, value in idle.items())
        sampled: Any = model.generation_config
        tell(
            f"the base's generation config has {values}, without effect there (do_sample={sampled.do_sample}), and "
            "transformers refuses to write it so; what is saved is without, and generates as the base does"
        )
    settle_endings(model, tokenizer, prompts)
    check_savable(model, tokenizer)


def mend_generation_config(model: PreTrainedModel) -> dict[str, Any]:
    """Take out of a generation config what has no effect there, and for which transformers refuses to write it.

    Many a base has, say, temperature=0.9 with do_sample=false: that is read with a warning, and is greedy decoding.
    Returns what was taken out, by name; a config that is wrong in another way is left as it is.
    """
    config: Any = getattr(model, "generation_config", None)
    if config is None or _is_valid(config):
        return {}
    names = [name for name in (*_SAMPLING, *_BEAMS, *_OTHERS) if getattr(config, name, None) is not None]
    idle = {
        name: getattr(config, name) for name in names if not _is_valid(_without(config, names, keep=name))
    }
    if not _is_valid(_without(config, list(idle))):
        return {}
    for name in idle:
        setattr(config, name, None)
    return idle


def check_savable(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Save everything but the weights into a folder that is then thrown away.

    Raises:
        ModelError: a config, generation config or tokenizer that was loaded and cannot be written.
    """
    parts = {"config": model.config, "tokenizer": tokenizer}
    if model.can_generate() and getattr(model, "generation_config", None) is not None:
        parts["generation config"] = model.generation_config
    with TemporaryDirectory() as scratch:
        for name, part in parts.items():
            try:
                part.save_pretrained(str(Path(scratch)))
            except OSError:
                raise  # the folder's fault
            except Exception as error:
                raise ModelError(
                    f"the {name} of {model.name_or_path or type(model).__name__!r} was read and cannot be written, "
                    f"so nothing trained from it could be saved: {reason_of(error)}; mend its file and start again"
                ) from error


def _is_valid(config: GenerationConfig) -> bool:
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True


def _without(config: GenerationConfig, names: list[str], keep: str | None = None) -> GenerationConfig:
    changed = copy.deepcopy(config)
    for name in names:
        if name != keep:
            setattr(changed, name, None)
    return changed
