"""What a trainer is given in TRL's forms: rows of a dataset, a folder of groups, a model without its tokenizer."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.credits import CreditsByPrompt
from nonpareil.errors import ConfigError, DataError, ModelError
from nonpareil.methods.base import Method
from nonpareil.models.loading import load_tokenizer
from nonpareil.records import Group, Prompt
from nonpareil.rewards.combine import CombinedReward
from nonpareil.rewards.specs import load_rewards
from nonpareil.training.config import DistillationConfig
from nonpareil.training.settings.template import template_kwargs
from nonpareil.training.stored import prompts_of_stored

_KINDS = (
    "give a datasets.Dataset with a column 'prompt' (text, or [{role, content}] messages), a list of such rows, or "
    "prompts that tokenize_prompts made (nonpareil.rollouts); load_prompts reads files"
)


@dataclass(frozen=True)
class GivenData:
    """What is trained on, whatever it was given as."""

    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt] | None
    groups: Sequence[Group] | None


def default_config(model: Any) -> DistillationConfig:
    """The settings of a trainer that is given none: all defaults, in a folder with the model's name."""
    name = Path(model if isinstance(model, str) else str(getattr(model, "name_or_path", ""))).name
    return DistillationConfig(f"{name or type(model).__name__}-distilled")


def given_tokenizer(model: Any, processing_class: Tokenizer | None, args: DistillationConfig) -> Tokenizer:
    """The policy's tokenizer: the one given, else the one beside the model.

    Raises:
        ConfigError: a model object that does not say where its tokenizer lies, or there is none.
        ModelError: none at the model's path.
    """
    if processing_class is not None:
        return processing_class
    if isinstance(model, str):
        return load_tokenizer(model, trust_remote_code=args.trust_remote_code, init=args.init())
    name = str(getattr(model, "name_or_path", "") or "")
    beside = "processing_class=None: a model object needs its tokenizer beside it"
    if not name:
        raise ConfigError(beside)
    try:
        return load_tokenizer(name, trust_remote_code=args.trust_remote_code)
    except (ConfigError, ModelError) as error:
        raise ConfigError(f"{beside}, and none could be read where the model came from: {error}") from error


def check_datasets(train_dataset: Any, eval_dataset: Any, groups: Any) -> None:
    """Refuse what is no dataset, and several where one is read.

    Raises:
        DataError: naming the argument.
    """
    if groups is not None and train_dataset is not None:
        raise DataError(
            "groups and train_dataset are both given, and the training prompts are those of the groups; leave "
            "train_dataset out"
        )
    for name, data in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
        if isinstance(data, Mapping):
            first = next(iter(data), "train")
            raise DataError(
                f"{name} is a {type(data).__name__} ({', '.join(map(str, data)) or 'empty'}), and one dataset is "
                f"read; give one of them: {name}=data[{first!r}]"
            )
        if data is not None and not _is_dataset(data) and not _is_list(data):
            raise DataError(f"{name} is a {type(data).__name__}, which is not read; {_KINDS}")
        for place, row in enumerate(data if _is_list(data) else ()):
            if not isinstance(row, Mapping | Prompt) or isinstance(row, Prompt) != isinstance(
                data[0], Prompt
            ):
                raise DataError(f"{name}[{place}] is a {type(row).__name__} ({row!r:.40}); {_KINDS}")
    if isinstance(groups, str | Path):
        return
    if groups is not None and not _is_list(groups):
        raise DataError(f"groups is a {type(groups).__name__}; {_GROUPS}")
    for place, group in enumerate(groups or ()):
        if not isinstance(group, Group):
            raise DataError(f"groups[{place}] is a {type(group).__name__}, not a Group; {_GROUPS}")


_GROUPS = "give groups as read_groups(folder) reads them (nonpareil.rollouts), or the path of their folder"


def given_data(
    model: Any,
    args: DistillationConfig,
    method: Method,
    tokenizer: Tokenizer,
    train_dataset: Any,
    eval_dataset: Any,
    groups: Any,
    credits: CreditsByPrompt | None,
) -> GivenData:
    """Prompts as the policy sees them, and stored groups read, before any model is loaded.

    Raises:
        ConfigError: no prompts, arguments of the chat template that nothing reads, or groups of another policy.
        DataError: rows without a usable prompt, a stream without an end, or groups that cannot be trained on.
    """
    if groups is None:
        prompts = given_prompts("train_dataset", train_dataset, args, tokenizer, method)
    elif isinstance(groups, str | Path):
        groups = _read_folder(groups, model, args, method, tokenizer, credits)
        prompts = prompts_of_stored(groups, method, credits)
    else:
        if args.chat_template_kwargs is not None:
            raise _unread("groups", args)
        prompts = prompts_of_stored(groups, method, credits)
    if not prompts:
        raise ConfigError("train_dataset is empty; give at least one prompt")
    held_out = None
    if eval_dataset is not None:
        held_out = given_prompts("eval_dataset", eval_dataset, args, tokenizer)
    return GivenData(prompts, held_out, groups)


def given_prompts(
    name: str, data: Any, args: DistillationConfig, tokenizer: Tokenizer, method: Method | None = None
) -> Sequence[Prompt]:
    """The prompts of a dataset, tokenised where they are rows. `name`: the argument that it came by.

    `method` says how many prompts the training of a stream needs; without one a stream is refused.

    Raises:
        ConfigError: arguments of the chat template that nothing reads.
        DataError: as `rollouts.prompts.tokenize_prompts`, or a stream of which nobody says how much is needed.
    """
    from nonpareil.rollouts.checked_rows import check_column
    from nonpareil.rollouts.prompts import tokenize_prompts

    if data is None:
        return []
    if _is_list(data) and len(data) and isinstance(data[0], Prompt):
        rendered = [prompt.rendering for prompt in data if not isinstance(prompt.prompt, str)]
        given = args.chat_template_kwargs
        if given and not (rendered and all(how and how.chat_template_kwargs == given for how in rendered)):
            raise _unread(name, args)
        return data
    rows = list(data) if _is_list(data) else _rows_of(name, data, args, method)
    if not rows:
        return []
    check_column(rows[0], "prompt", name, "rename {} to 'prompt' (dataset.rename_column)")
    try:
        return tokenize_prompts(rows, tokenizer, template_kwargs(args.chat_template_kwargs))
    except DataError as error:
        raise DataError(f"{name}, {error}") from error


def _rows_of(name: str, data: Any, args: DistillationConfig, method: Method | None) -> list[dict[str, Any]]:
    """Of a dataset all; of a stream, which may have no end, as many as the steps need."""
    if not _is_dataset(data, "IterableDataset"):
        # `to_list` gives what is stored, and not what a transform (`with_transform`) makes of it.
        return [dict(row) for row in data] if data.format["type"] == "custom" else data.to_list()
    if method is None:
        raise DataError(
            f"{name} is a stream (IterableDataset), and each evaluation takes all prompts; give the first ones: "
            f"{name}=list(stream.take(256))"
        )
    if args.max_steps <= 0:
        raise DataError(
            f"{name} is a stream (IterableDataset), and nobody says how much of it to read; give max_steps, or the "
            f"first prompts: {name}=list(stream.take(10_000))"
        )
    return list(islice(data, math.ceil(args.max_steps / method.num_iterations) * args.prompts_per_step))


def _read_folder(
    folder: str | Path,
    model: Any,
    args: DistillationConfig,
    method: Method,
    tokenizer: Tokenizer,
    credits: CreditsByPrompt | None,
) -> list[Group]:
    """The groups of a folder, which must be the model's own: drawn at these settings and read as it reads them."""
    from nonpareil.training.named_policy import NamedPolicy
    from nonpareil.training.stored_folder import load_groups

    if not isinstance(model, str):
        raise ConfigError(
            f"groups={str(folder)!r} beside a model object: whether they were drawn from these weights cannot be "
            "told; give the model by its path, or vouch for them with groups=read_groups(folder) "
            "(nonpareil.rollouts)"
        )
    policy = NamedPolicy(model, tokenizer, trust_remote_code=args.trust_remote_code, init=args.init())
    kwargs = template_kwargs(args.chat_template_kwargs)
    return load_groups(str(folder), policy, args, method, None, kwargs, credits)


def given_reward(
    reward_funcs: Any, tokenizers: Any, args: DistillationConfig, folder: str | None, *, scores: bool
) -> CombinedReward:
    """The rewards, loaded; those that scored the groups of a `folder`, where one is given.

    None for them is enough where nothing `scores` in the training: the folder says whose its scores are.

    Raises:
        ConfigError, ModelError: one that cannot be loaded, or another than the stored one.
    """
    from nonpareil.rewards.stored import stored_rewards
    from nonpareil.training.stored_folder import check_stored_rewards, manifest_of

    reward = reward_funcs
    if reward is None and folder is not None and not scores:
        described = manifest_of(Path(folder)).get("rewards")
        reward = None if described is None else stored_rewards(described, args.reward_weights)
    if not isinstance(reward, CombinedReward):
        reward = load_rewards(
            reward_funcs,
            tokenizers=tokenizers,
            weights=args.reward_weights,
            timeout=args.reward_timeout,
            trust_remote_code=args.trust_remote_code,
        )
    if folder is not None:
        check_stored_rewards(folder, reward)
    return reward


def _unread(name: str, args: DistillationConfig) -> ConfigError:
    return ConfigError(
        f"chat_template_kwargs={args.chat_template_kwargs!r} is not read: {name} is tokenised already; give rows "
        "instead (a Dataset), or the arguments to tokenize_prompts"
    )


def _is_list(data: Any) -> bool:
    return isinstance(data, Sequence) and not isinstance(data, str | bytes)


def _is_dataset(data: Any, kind: str | None = None) -> bool:
    """Whether it is of the library `datasets`, which whoever gives such a thing has imported."""
    datasets = sys.modules.get("datasets")
    kinds = ("Dataset", "IterableDataset") if kind is None else (kind,)
    return datasets is not None and isinstance(data, tuple(getattr(datasets, one) for one in kinds))
