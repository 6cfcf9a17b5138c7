"""What is done before a training on credits: groups are drawn, a value is fitted, credits are made.

Each has its folder in output_dir and is kept, so that the same command goes on where it was stopped.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.distill.credits import cost_of_credits, make_credits
from nonpareil.commands.distill.folder import folder_of_run
from nonpareil.commands.distill.inputs import TrainingData
from nonpareil.commands.distill.pool import check_pool, cost_of_pool, draw_pool
from nonpareil.commands.distill.spent import count_pool
from nonpareil.options.distill import DistillOptions
from nonpareil.records import prompt_of
from nonpareil.terminal import tell
from nonpareil.training.settings.template import template_kwargs
from nonpareil.training.stored_folder import load_groups

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.methods.base import Method
    from nonpareil.rewards.combine import CombinedReward
    from nonpareil.training.config import DistillationConfig


def check_stages(
    options: DistillOptions,
    config: "DistillationConfig",
    policy: "LocalPolicy",
    data: TrainingData,
    reward: "CombinedReward | None" = None,
) -> None:
    """Refuse, before anything is drawn, what would be refused later; of groups that are given all is seen then.

    Raises:
        NonpareilError: as `check_pool`.
    """
    if data.groups is None:
        check_pool(options, config, policy, data.prompts, reward)


def before_training(
    options: DistillOptions,
    config: "DistillationConfig",
    method: "Method",
    policy: "LocalPolicy",
    data: TrainingData,
    *,
    resumed: bool,
) -> TrainingData:
    """Groups, drawn where none were given, and their credits; what is there of an earlier try is kept.

    Raises:
        NonpareilError: a stage that cannot be done, or one there that was done with other settings.
        KeyboardInterrupt: stopped; how to go on was said.
    """
    groups = data.groups
    folder_of_run(
        Path(str(config.output_dir))
    ).mark()  # a kill may leave a stage's folder with nothing whole in it
    try:
        if groups is None:
            _tell_plan(options, config, method, data)
            options = draw_pool(options, config, resumed=resumed)
            limit, kwargs = options.max_train_prompts, template_kwargs(options.chat_template_kwargs)
            groups = load_groups(options.groups or "", policy, config, method, limit, kwargs)
            count_pool(Path(str(config.output_dir)), groups)
        credits = make_credits(options, config, groups, resumed=resumed)
    except KeyboardInterrupt:
        without = "without --overwrite " if options.overwrite else ""
        tell(
            f"stopped before the training; the same command {without}goes on with what is in {config.output_dir}"
        )
        raise
    return TrainingData(groups, [prompt_of(group) for group in groups], credits)


def cost_of_stages(
    options: DistillOptions, config: "DistillationConfig", method: "Method", data: TrainingData
) -> dict[str, Any]:
    """For the dry run: completions to draw and to fit, candidates to score, and the steps of the training.

    Raises:
        NonpareilError: as `cost_of_credits`.
    """
    from nonpareil.training.prompt_order import planned_steps

    if data.groups is None:
        cost: dict[str, Any] = dict(cost_of_pool(options, config, len(data.prompts)))
    else:
        cost = {"credits": cost_of_credits(options, config, data.groups)}
    return {**cost, "steps": planned_steps(config, method, len(data.prompts))}


def _tell_plan(
    options: DistillOptions, config: "DistillationConfig", method: "Method", data: TrainingData
) -> None:
    """What will be done, one after another."""
    cost = cost_of_stages(options, config, method, data)
    fit = "" if options.value is not None else ", fit a value to them"
    tell(
        f"no groups are given, so first draw {cost['groups']['completions']} completions{fit}, credit "
        f"{cost['credits']['completions']} of them, then train {cost['steps']} steps"
    )
