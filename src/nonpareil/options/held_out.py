"""Which prompts are held out of a training: a split or dataset of their own, or a part of the training split."""

from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.settings import settings_of


def eval_split(options: Any) -> str:
    """The split that held-out prompts are of: the training split's own part, where one is held out of it."""
    return options.dataset_test_split if options.test_split_size is None else options.dataset_train_split


def check_held_out(options: Any, *, stored: bool = False) -> None:
    """Refuse two sources of held-out prompts at once. `stored`: the training prompts are those of groups.

    Raises:
        ConfigError: naming both.
    """
    if options.test_split_size is None:
        return
    size = f"test_split_size={options.test_split_size:g}"
    if options.eval_dataset_name is not None and not stored:
        raise ConfigError(
            f"{size} holds prompts out of dataset_name, and eval_dataset_name={options.eval_dataset_name!r} has "
            "others; give one of them"
        )
    if options.dataset_test_split != settings_of(type(options))["dataset_test_split"].default:
        raise ConfigError(
            f"dataset_test_split={options.dataset_test_split!r} is not read: {size} holds prompts out of "
            f"dataset_train_split={options.dataset_train_split!r}; give one of them"
        )
