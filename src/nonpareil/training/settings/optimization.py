"""Size, length and log of a training; the first three have other defaults in transformers."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.settings import option


@dataclass
class OptimizationSettings:
    """A step has `per_device_train_batch_size` x `gradient_accumulation_steps` prompts per process."""

    HEADING: ClassVar = "Training"

    learning_rate: float = option(
        3e-6,
        "Peak learning rate of AdamW. 3e-6 is for full weights; a LoRA adapter wants 1e-4 to 1e-3 (docs/chat.md).",
        above=0,
        at_most=1000,
    )
    per_device_train_batch_size: int = option(
        128, "Prompts per step and process; times gradient_accumulation_steps.", at_least=1
    )
    logging_steps: float = option(
        10, "Steps between logged metrics.", above=0, why="below 1 a share of all steps"
    )
    frozen_parameters: list[str] | None = option(
        None, "Parts of names of parameters that are not trained, such as embed_tokens."
    )
    max_train_seconds: float | None = option(
        None,
        "Stop after so many seconds of training steps, resumes included.",
        above=0,
        compare="budget.seconds sets it",
    )
    log_completions: bool = option(True, "Write completions and rewards to Parquet every logging_steps.")
    num_completions_to_print: int | None = option(
        None,
        "Of those, how many are shown on stderr, with their rewards. Default: 3 on a terminal, else none.",
        at_least=0,
        of="log_completions",
    )
