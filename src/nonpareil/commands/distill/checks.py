"""What of a distillation's options can be refused before anything is read."""

from typing import TYPE_CHECKING

from nonpareil.commands.distill.manifest_defaults import why_not_named
from nonpareil.commands.inputs import require_all
from nonpareil.errors import ConfigError
from nonpareil.files import one_dataset
from nonpareil.in_memory import InMemory
from nonpareil.options.distill import DistillOptions
from nonpareil.options.held_out import check_held_out
from nonpareil.options.rewards import no_judge
from nonpareil.options.unread import is_one_split, refuse_unread_of_distill

if TYPE_CHECKING:
    from nonpareil.training.config import DistillationConfig


def check_options(options: DistillOptions, config: "DistillationConfig") -> None:
    """Refuse options that cannot work together, before anything is read.

    Raises:
        ConfigError: an option that is missing, that nothing would read, or that goes with no other.
    """
    why = None if options.groups is None else why_not_named(options.groups)
    if why and not options.evaluate_after and config.eval_strategy == "no":
        why = ""  # their stored scores may be all that the method takes (`loaded_or_stored`)
    require_all(options, prompts_from_groups=options.groups is not None, no_reward=why)
    if options.evaluate_after and options.judge_model is not None:
        why = "distill evaluates the policy against its reference; give evaluate_after=false"
        raise ConfigError(f"judge_model={options.judge_model!r} {no_judge(why)}")
    if options.merge and not config.use_peft:
        raise ConfigError("merge=true without use_peft: there is no adapter to merge; remove it")
    _check_asked_strength(options)
    check_held_out(options, stored=options.groups is not None)
    reads_held_out = needs_held_out(options, config)
    refuse_unread_of_distill(options, config, held_out_source(options) if reads_held_out else None)


def _check_asked_strength(options: DistillOptions) -> None:
    n, most = options.at_n, options.num_reference_samples_eval
    if n is not None and options.at_win_rate is not None:
        raise ConfigError(
            f"at_win_rate={options.at_win_rate} and at_n={n} ask for two policies, and one is written; give one of "
            "them (`nonpareil interpolate` writes any other)"
        )
    if n is not None and n >= most:
        raise ConfigError(
            f"at_n={n} is more than num_reference_samples_eval={most} shows, which is best-of-{most - 1} at most; "
            "lower at_n or draw more"
        )


def needs_held_out(options: DistillOptions, config: "DistillationConfig") -> bool:
    """Whether held-out prompts are read at all: after training, or in it."""
    return options.evaluate_after or config.eval_strategy != "no"


def held_out_source(options: DistillOptions) -> str:
    """Where held-out prompts come from; never the training prompts by default.

    Raises:
        ConfigError: the policy is evaluated after training, and nothing says on which prompts.
    """
    train = options.prompt_source or ""
    if not train and options.eval_dataset_name is None and options.evaluate_after:
        raise ConfigError(
            "eval_dataset_name is missing: groups hold training prompts only; give held-out prompts, or "
            "evaluate_after=false"
        )
    one_part = options.eval_dataset_name is None and options.test_split_size is None
    if one_part and options.evaluate_after and is_one_split(train):
        kept = "in memory" if isinstance(train, InMemory) else one_dataset(train)
        named = f"dataset_name={train!r} is {kept}" if options.datasets is None else "datasets is a mixture"
        raise ConfigError(
            f"{named}, without a test split, and evaluation needs held-out prompts; "
            "give eval_dataset_name or test_split_size (0.1 holds out a tenth), or evaluate_after=false"
        )
    return options.eval_dataset_name or train
