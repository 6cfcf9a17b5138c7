"""YAML into option dataclasses, with the refusals that flags get."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from nonpareil.errors import ConfigError
from nonpareil.setting_types import INTEGER, NUMBER, nearest, shown
from nonpareil.settings import read_settings, settings_of

T = TypeVar("T")
MOST_VALUES = 10_000
"""Of one file; aliases of aliases stand for more than any memory holds."""
OTHER_NAMES = {
    "beta": "kl_coef",
    "gamma": "kl_coef",
    "kl_beta": "kl_coef",
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "steps": "max_steps",
    "warmup_ratio": "warmup_steps",
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "model_path": "model_name_or_path",
    "ref_model": "reference_model_name_or_path",
    "reference_model": "reference_model_name_or_path",
    "reward_model": "reward_model_name_or_path",
    "reward_model_path": "reward_model_name_or_path",
    "reward_func": "reward_funcs",
    "dataset": "dataset_name",
    "dataset_path": "dataset_name",
    "data": "dataset_name",
    "dataset_mixture": "datasets",
    "dataset_mixer": "datasets",
    "split": "dataset_split",
    "max_length": "max_completion_length",
    "max_new_tokens": "max_completion_length",
    "max_tokens": "max_completion_length",
    "response_length": "max_completion_length",
    "num_return_sequences": "num_generations",
    "best_of": "num_generations",
    "best_of_n": "n",
    "n_samples": "num_generations",
    "num_samples": "num_generations",
    "output": "output_dir",
    "out": "output_dir",
    "limit": "max_prompts",
    "torch_dtype": "dtype",
    "dtype": "bf16",
    "revision": "model_revision",
    "lora_rank": "lora_r",
    "lora_modules": "lora_target_modules",
}
"""What other libraries call a setting of ours."""


def typed(cls: type[T], values: Any, where: str) -> T:
    """An options dataclass from YAML's values, converted and checked as flags are.

    Raises:
        ConfigError: a key it does not have, with the nearest, or a value that cannot be.
    """
    values = mapping(values, where)
    refuse_unknown(values, settings_of(cls), where)
    read = read_settings(cls, values, f"{where}." if where else "")
    try:
        return cls(**read)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error


def refuse_unknown(values: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
    """Refuse a key that is not among those known, with the nearest."""
    names = list(known)
    for key in values:
        if key not in names:
            inside = f"{where}: " if where else ""
            raise ConfigError(f"{inside}unknown key {shown(key)}{meant(str(key), names)}")


def meant(word: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean ...?` of an unknown name: what others call ours, else the nearest of ours."""
    names = list(known)
    ours = OTHER_NAMES.get(word.replace("-", "_"))
    if ours not in names:  # a training has no dtype, but says what it computes in
        ours = OTHER_NAMES.get(str(ours))
    return f"; did you mean {prefix}{ours}?" if ours in names else nearest(word, names, prefix)


def load_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a file, as YAML 1.2 reads them.

    What YAML 1.1 took for another number, a date or a truth value (`1:30`, `010`, `2026-11-26`, `no`) is text.

    Raises:
        ConfigError: no such file, not YAML, a key given twice, or something other than keys and values.
    """
    where = f"config={str(path)!r}"
    if not path.is_file():
        raise ConfigError(f"{where}: no such file")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8-sig"), yaml.SafeLoader)
        content = None if node is None else _Reader().value(node)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deeply") from error
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        raise ConfigError(f"{where} is empty; write options into it, or leave it out")
    return mapping(content, where)


def mapping(value: Any, where: str) -> dict[str, Any]:
    """A section as it is, an empty one as {}.

    Raises:
        ConfigError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must hold keys and values, not {value!r:.60}")
    return value


def scalar(text: str) -> Any:
    """What an unquoted word is: null, true, false, a number, or the text itself."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if INTEGER.fullmatch(text):
        return int(text)
    # A number that no float reaches stays as the user wrote it, for the message that refuses it.
    return float(text) if NUMBER.fullmatch(text) and math.isfinite(float(text)) else text


class _Reader:
    """Values of PyYAML's nodes, which it would read as YAML 1.1. Counts them: aliases can stand for millions."""

    def __init__(self) -> None:
        self.count = 0
        self._resolver = yaml.resolver.Resolver()

    def value(self, node: yaml.Node) -> Any:
        """The value of one node.

        Raises:
            ConfigError: a tag, a key that is no text or given twice, or more values than any options have.
        """
        self.count += 1
        if self.count > MOST_VALUES:
            raise ConfigError(f"there are more than {MOST_VALUES:,} values, aliases counted as often as used")
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.value(one) for one in node.value]
        if isinstance(node, yaml.ScalarNode):
            plain = node.style is None
            if plain and node.tag == self._resolver.resolve(yaml.ScalarNode, node.value, (True, False)):
                return scalar(node.value)
            if node.tag == "tag:yaml.org,2002:str":
                return node.value
        raise ConfigError(f"the tag {shown(node.tag)} is not read ({_line(node)}); remove it")

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # `<<`, which stands for other keys
                others = self.value(value)
                for other in reversed(others if isinstance(others, list) else [others]):
                    merged |= mapping(other, "<<")
                continue
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if not name:
                raise ConfigError(f"a key is no word ({_line(key)}); give the name of an option")
            if name in own:
                raise ConfigError(
                    f"{name!r} is given twice (line {node.start_mark.line + 1} ff.); remove one"
                )
            own[name] = self.value(value)
        return merged | own


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


class _Dumper(yaml.SafeDumper):
    """Quotes what `scalar` would take for a number, and YAML 1.1 for text."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Text that `load_yaml` reads back as it was."""
    return yaml.dump(dict(values), Dumper=_Dumper)
