"""Settings of transformers that go wrong after models were loaded, refused before."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from nonpareil.errors import ConfigError
from nonpareil.setting_types import nearest, shown
from nonpareil.terminal import reason_of

OPTIMIZERS_OF = {
    "bitsandbytes": ("8bit", "_bnb", "32bit", "ademamix"),
    "galore_torch": ("galore",),
    "apollo_torch": ("apollo",),
    "lomo_optim": ("lomo",),
    "grokadamw": ("grokadamw",),
    "schedulefree": ("schedule_free",),
    "torch_optimi": ("stable_adamw",),
    "torchao": ("adamw_torch_4bit", "adamw_torch_8bit"),
    "torchdistx": ("adamw_anyprecision",),
}
"""The package of optimizers that torch lacks, by parts of their names; the last that fits."""
MEASURED = ("reward", "completions/mean_length")
"""What the trainer's own evaluation gives, as `metric_for_best_model` names it."""


def check_inherited(config: TrainingArguments) -> None:
    """Refuse what a Trainer would refuse only once it trains, saves or evaluates, or would not even notice.

    Raises:
        ConfigError: naming the setting.
    """
    if config.fp16 and config.use_cpu:
        raise ConfigError("fp16=True needs a GPU; on the CPU give bf16, or neither for float32")
    _check_hub(config)
    _check_reports(config.report_to)
    _check_packages(config)
    _check_optim_args(config.optim_args)
    _check_best_model(config)
    _check_schedule(config)


def check_accelerator(config: TrainingArguments) -> None:
    """Refuse accelerate's own name for gradient accumulation; called once transformers has read the setting.

    Raises:
        ConfigError: naming the setting.
    """
    given: Any = getattr(config.accelerator_config, "gradient_accumulation_kwargs", None) or {}
    if "num_steps" in given:
        steps = given["num_steps"]
        raise ConfigError(
            f"accelerator_config: num_steps={steps} of gradient_accumulation_kwargs is not read here; give "
            f"gradient_accumulation_steps={steps}"
        )


@contextmanager
def in_our_words() -> Iterator[None]:
    """What transformers refuses by itself becomes a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError, KeyError, ImportError, NotImplementedError, OSError) as error:
        raise ConfigError(f"transformers cannot take these settings: {reason_of(error)}") from error


def _check_hub(config: TrainingArguments) -> None:
    if not config.push_to_hub:
        return
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise ConfigError("push_to_hub=True, but HF_HUB_OFFLINE is set, so nothing can be sent; unset one")
    if not (config.hub_token or get_token()):
        raise ConfigError(
            "push_to_hub=True, and no token of the hub is known; run `hf auth login`, or set HF_TOKEN"
        )


def _check_reports(report_to: Any) -> None:
    """Names of integrations, each of which is installed."""
    names = report_to if isinstance(report_to, list | tuple) else [report_to]
    there = get_available_reporting_integrations()
    for name in names:
        if name in (None, "none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = ["none", "all", *INTEGRATION_TO_CALLBACK]
            raise ConfigError(
                f"report_to={shown(report_to)} must be among {', '.join(known)}{nearest(name, known)}"
            )
        if name not in there:
            raise ConfigError(
                f"report_to={shown(report_to)}: {name} is not installed; install it, or give report_to=none"
            )


def _check_packages(config: TrainingArguments) -> None:
    optim = str(getattr(config.optim, "value", config.optim))
    package = None
    for name, parts in OPTIMIZERS_OF.items():
        if any(part in optim for part in parts):
            package = name
    if package is not None and find_spec(package) is None:
        raise ConfigError(f"optim={optim!r} needs the package {package}, which is not installed")
    if config.use_liger_kernel and find_spec("liger_kernel") is None:
        raise ConfigError("use_liger_kernel=True needs the package liger_kernel, which is not installed")


def _check_optim_args(optim_args: str | None) -> None:
    for part in (optim_args or "").replace(" ", "").split(","):
        if optim_args and part.count("=") != 1:
            raise ConfigError(f"optim_args={optim_args!r} must be name=value, several with commas between")


def _check_best_model(config: TrainingArguments) -> None:
    """Whether the metric that something follows is one that evaluation gives."""
    followers = {
        "load_best_model_at_end=True": config.load_best_model_at_end,
        "save_strategy=best": _word(config.save_strategy) == "best",
        **{
            f"lr_scheduler_type={name}": _word(config.lr_scheduler_type) == name
            for name in ("reduce_lr_on_plateau", "greedy")
        },
    }
    follower = next((name for name, follows in followers.items() if follows), None)
    metric = config.metric_for_best_model
    if follower is None and metric is not None:
        raise ConfigError(
            f"metric_for_best_model={metric!r} is not read without load_best_model_at_end or save_strategy=best; "
            "give one, or remove it"
        )
    if follower is None:
        return
    name = (metric or "").removeprefix("eval_")
    of_one = name.startswith("rewards/") and name.endswith("/mean")  # which the trainer knows
    if name not in MEASURED and not of_one:
        raise ConfigError(
            f"metric_for_best_model={metric!r} with {follower} must be one of {', '.join(MEASURED)}, or of several "
            "rewards rewards/NAME/mean: the trainer's evaluation measures no other"
        )
    if _word(config.eval_strategy) == "no":
        raise ConfigError(f"{follower} follows metric_for_best_model, and eval_strategy=no never measures it")


def _check_schedule(config: TrainingArguments) -> None:
    """By making the schedule of an optimizer of nothing."""
    given, name = config.lr_scheduler_kwargs, _word(config.lr_scheduler_type)
    if not given and name in ("linear", "cosine", "constant", "constant_with_warmup"):
        return
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    try:
        kwargs = json.loads(given) if isinstance(given, str) else dict(given or {})
        get_scheduler(name, optimizer, 1, 10, scheduler_specific_kwargs=kwargs)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"lr_scheduler_kwargs={shown(given)} does not go with lr_scheduler_type={name}: {reason_of(error)}"
        ) from error


def _word(setting: Any) -> str:
    """Of an enum its value."""
    return str(getattr(setting, "value", setting))
