"""The options of a policy at a strength of its training, read without importing torch."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.models.model_init import REFERENCE_GGUF_HELP
from nonpareil.options.shared import FileOptions, ModelOptions
from nonpareil.settings import DTYPES, CheckedOptions, option

_IN_A_COMPARISON = (
    "remove it: evaluation.strengths and evaluation.at_win_rates show what each method's path pays"
)


@dataclass
class InterpolateOptions(ModelOptions, FileOptions):
    """Options of `nonpareil interpolate`."""

    HEADING: ClassVar = "Output"

    model_name_or_path: str | None = option(
        None,
        "The trained policy: a model or the folder of a LoRA adapter.",
        names="input",
        heading="Policy",
    )
    reference_model_name_or_path: str | None = option(
        None, "What the policy was before.", names="input", heading="Policy"
    )
    reference_model_revision: str | None = option(None, "Branch, tag or commit.", heading="Policy")
    reference_gguf_file: str | None = option(None, REFERENCE_GGUF_HELP, heading="Policy")
    dtype: str = option(
        "auto",
        "Of what is written, computed in float32: auto (as stored, the wider of the two), bfloat16, float16 or "
        "float32.",
        choices=DTYPES,
        heading="Policy",
    )
    strength: float | None = option(
        None,
        "Of the training: 0 is the reference, 1 the trained policy, between them less, above 1 beyond it.",
        at_least=0,
        heading="Policy",
    )
    output_dir: str | None = option(None, "Where the policy goes, a plain Hugging Face folder.", path=True)
    overwrite: bool = option(False, "Delete what an earlier interpolation wrote in output_dir first.")


@dataclass
class AskedStrengthOptions(CheckedOptions):
    """The policy that a distillation writes beside the trained one: at the strength that wins as often as asked."""

    HEADING: ClassVar = "Evaluation"

    at_win_rate: float | None = option(
        None,
        "Also write the policy with this win rate on the held-out prompts, to output_dir/at-win-rate-<it>: trained "
        "and reference interpolated, or gone beyond, and measured.",
        above=0.5,
        below=1,
        why="the reference's own is .5, and no finite KL is sure to reach 1",
        of="evaluate_after",
        compare=_IN_A_COMPARISON,
    )
    at_n: int | None = option(
        None,
        "The same at the win rate of best-of-n of the reference, ties counted, to output_dir/at-n-<it>.",
        at_least=2,
        why="best-of-1 is the reference itself",
        of="evaluate_after",
        compare=_IN_A_COMPARISON,
    )
