"""How long a training is, what it keeps on the way, and its seed: transformers' own, declared here for the help."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.setting_types import SEED
from nonpareil.settings import option


@dataclass
class LengthSettings:
    """Under transformers' names and with its defaults; those that nearly every training gives."""

    HEADING: ClassVar = "Training"

    output_dir: str | None = option(
        None,
        "The model, its checkpoints and its log. Default: nonpareil-distilled; from Python, trainer_output.",
        heading="Output",
        path=True,
        compare="remove it",
    )
    max_steps: int = option(
        -1,
        "Optimizer steps; above 0 it stands in for num_train_epochs.",
        at_least=1,
        also=(-1,),
        why="leave it out to train for num_train_epochs",
    )
    num_train_epochs: float = option(3.0, "Passes over the training prompts.", above=0)
    gradient_accumulation_steps: int = option(
        1, "Batches of per_device_train_batch_size prompts in one step.", at_least=1
    )
    seed: int = option(
        42,
        "Of draws, order of prompts and new weights.",
        at_least=0,
        at_most=SEED,
        compare="seeds at the top has one for each run",
    )
    save_steps: float = option(
        500,
        "Steps between checkpoints.",
        heading="Output",
        above=0,
        why="below 1 a share of all steps",
        of="save_strategy=steps",
    )
    save_total_limit: int | None = option(
        None,
        "Keep the last so many checkpoints. Default: all.",
        heading="Output",
        at_least=1,
        why="leave it out to keep all",
        of="save_strategy",
        compare="checkpoints at the top says how many are kept to be evaluated",
    )
    resume_from_checkpoint: str | None = option(
        None,
        "Go on from a checkpoint's folder, or with true from the last one in output_dir.",
        heading="Output",
        also=(True, False),
        compare="remove it",
    )
