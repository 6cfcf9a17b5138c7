"""The options of `nonpareil tilt`. A plain dataclass, read without importing torch."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.options.shared import CodeOptions, FileOptions
from nonpareil.setting_types import SEED
from nonpareil.settings import option


@dataclass
class TiltOptions(CodeOptions, FileOptions):
    """Options of `nonpareil tilt`."""

    HEADING: ClassVar = "Options"

    groups: str | None = option(
        None, "A folder written by `nonpareil sample`, drawn from the policy and scored.", names="input"
    )
    credits: str | None = option(
        None,
        "A folder of credits: what other next tokens would have been worth in the groups. Default: each token of a "
        "completion has the completion's rank.",
        names="input",
    )
    model_name_or_path: str | None = option(
        None, "The policy: a model, or the folder of a LoRA adapter.", names="input", heading="Policy"
    )
    model_revision: str | None = option(None, "Branch, tag or commit of a hub model.", heading="Policy")
    n: int | None = option(
        None,
        "Tilt as far as best-of-n of the groups wins. Default: 2, without win_rate.",
        at_least=2,
        why="best-of-1 is the reference itself",
    )
    win_rate: float | None = option(
        None,
        "Tilt as far as this win rate against the reference.",
        above=0.5,
        below=1,
        why="the reference's own is .5, and no tilt always wins",
    )
    format: str = option(
        "model",
        "model: a Hugging Face model with the tilt in its output layer, and logit_bias.json beside it; logit_bias: "
        "that alone.",
        choices=("model", "logit_bias"),
    )
    max_tokens_per_batch: int = option(
        32768, "Tokens, padding included, of one batch; bounds memory.", at_least=1
    )
    output_dir: str | None = option(None, "Where all goes.", path=True)
    seed: int = option(0, "Of the bootstrap.", at_least=0, at_most=SEED)
    overwrite: bool = option(False, "Replace what an earlier tilt wrote in output_dir.")
