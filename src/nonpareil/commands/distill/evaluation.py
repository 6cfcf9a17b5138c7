"""The evaluation that follows a training: its options, from those of the distillation."""

from pathlib import Path
from typing import TYPE_CHECKING

from nonpareil.commands.distill.checks import held_out_source
from nonpareil.commands.distill.inputs import reward_options
from nonpareil.commands.evaluate.dtypes import training_dtype
from nonpareil.options.distill import DistillOptions
from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.options.held_out import eval_split
from nonpareil.options.rewards import RewardOptions
from nonpareil.options.shared import PromptOptions, named_prompts
from nonpareil.settings import values_of

if TYPE_CHECKING:
    from nonpareil.methods.base import Method
    from nonpareil.training.config import DistillationConfig


def evaluation_options(
    options: DistillOptions, config: "DistillationConfig", method: "Method"
) -> EvaluateOptions:
    """The trained policy against what it was before, on held-out prompts, at the settings it was trained at.

    Raises:
        ConfigError: as `held_out_source` and `training_dtype`.
    """
    from nonpareil.methods import spec_of

    output_dir = Path(str(config.output_dir))
    prompts = {**values_of(options, PromptOptions), **named_prompts(held_out_source(options))}
    return EvaluateOptions(
        **prompts,
        **values_of(reward_options(options, config), RewardOptions),
        model_name_or_path=str(output_dir),
        reference_model_name_or_path=options.model_name_or_path,
        reference_model_revision=options.model_revision,
        reference_gguf_file=config.gguf_file,
        attn_implementation=config.attn_implementation,
        model_init_kwargs=config.model_init_kwargs,
        load_in_4bit=config.load_in_4bit,
        load_in_8bit=config.load_in_8bit,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        use_bnb_nested_quant=config.use_bnb_nested_quant,
        bnb_4bit_quant_storage=config.bnb_4bit_quant_storage,
        dataset_split=eval_split(options),
        max_prompts=options.max_eval_prompts,
        num_generations=options.num_generations_eval,
        num_reference_samples=options.num_reference_samples_eval,
        unseen_reward=options.unseen_reward,
        dtype=training_dtype(config, options.kl_dtype),
        kl_dtype=options.kl_dtype,
        max_completion_length=config.max_completion_length,
        temperature=config.temperature,
        seed=config.seed,
        output_dir=str(output_dir / "evaluation"),
        title=f"{output_dir.name}: trained with {spec_of(type(method))}",
        overwrite=True,
    )
