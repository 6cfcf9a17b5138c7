"""The options of `nonpareil evaluate`. Plain dataclasses, read without importing torch."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.models.model_init import REFERENCE_GGUF_HELP
from nonpareil.options.guidance import GuidanceOptions
from nonpareil.options.rewards import RewardOptions, no_judge
from nonpareil.options.shared import WITH_SPLITS, FileOptions, ModelOptions, PromptOptions, SamplingOptions
from nonpareil.settings import DTYPES, option

CUT = "draws from a part of the vocabulary; the KL would be that of another policy. Evaluate without it"


@dataclass
class EvaluateOptions(
    ModelOptions, PromptOptions, RewardOptions, SamplingOptions, GuidanceOptions, FileOptions
):
    """Options of `nonpareil evaluate`."""

    HEADING: ClassVar = "Evaluation"

    judge_model: str | None = option(
        None, "Refused.", refused=no_judge("evaluate compares the rewards of two policies")
    )
    reference_model_name_or_path: str | None = option(
        None, "What the policy was before.", names="input", heading="Policy"
    )
    reference_model_revision: str | None = option(None, "Branch, tag or commit.", heading="Policy")
    reference_gguf_file: str | None = option(None, REFERENCE_GGUF_HELP, heading="Policy")
    dataset_split: str = option(
        "test", "Of a dataset that has splits.", reader=WITH_SPLITS, heading="Prompts"
    )
    max_prompts: int | None = option(None, "The first ones only.", at_least=1, heading="Prompts")
    temperature: float | None = option(  # type: ignore[assignment]  # a number once the policy is known
        None,
        "Divides the logits of both models. Default: what the policy was trained at, as its folder says, else 1.",
        above=0,
        why="best-of-N needs draws that differ",
    )
    top_p: float = option(1.0, "Refused below 1.", above=0, at_most=1, refused=CUT)
    top_k: int = option(0, "Refused above 0.", at_least=0, refused=CUT)
    min_p: float = option(0.0, "Refused above 0.", at_least=0, below=1, refused=CUT)
    num_generations: int = option(8, "Completions of the policy per prompt.", at_least=2, heading="Drawing")
    num_reference_samples: int = option(
        16, "Completions of the reference per prompt, M.", at_least=2, heading="Drawing"
    )
    n: list[int] | None = option(  # type: ignore[assignment]  # several, where no value guides
        None,
        "The N whose best-of-N is compared with. Default: those of 2, 4, 8 and 16 up to num_reference_samples. "
        "With a value the one that it guides towards.",
        at_least=2,
        why="best-of-1 is the reference itself",
        heading="Evaluation",
    )
    unseen_reward: str | None = option(
        None,
        "A second reward, not trained on: a model, read by its own tokenizer as is, or a function.",
        names="reward",
        heading="Rewards",
    )
    kl_dtype: str = option(
        "float32",
        "What the KL's passes multiply in, the weights being dtype's: float32, or auto for dtype itself, which "
        "halves memory and adds noise.",
        choices=DTYPES,
    )
    strengths: list[float] | None = option(
        None,
        "Evaluate the path from the reference through the policy: its weights at these strengths (0 is the "
        "reference, 1 the policy, more is beyond it), each drawn and scored as one. Default: the policy alone.",
        at_least=0,
    )
    at_win_rates: list[float] = option(
        [0.6, 0.7, 0.8],
        "Say at which strength and KL the path reaches these win rates.",
        above=0.5,
        below=1,
        why="the reference's own is .5, and no finite KL is sure to reach 1",
        of="strengths",
    )
    output_dir: str = option(
        "nonpareil-evaluation", "Where groups and report go.", path=True, heading="Output"
    )
    reference_dir: str | None = option(
        None,
        "The reference's groups, shared by evaluations. Default: <output_dir>/reference.",
        path=True,
        heading="Output",
    )
    title: str = option("How near to best-of-N?", "The report's heading.", heading="Output")
    overwrite: bool = option(
        False, "Delete the groups that an earlier evaluation wrote in output_dir first.", heading="Output"
    )
