"""`nonpareil evaluate`: its options, and what it runs and shows."""

from nonpareil.commands.command import Command
from nonpareil.commands.evaluate import run as evaluate
from nonpareil.commands.evaluate.show import as_json, show
from nonpareil.options.evaluate import EvaluateOptions

COMMAND = Command(
    description=evaluate.__doc__ or "",
    example=(
        "nonpareil evaluate --model_name_or_path ./distilled --reference_model_name_or_path ./my-model \\\n"
        "      --dataset_name held-out.jsonl --reward_model_name_or_path ./my-reward-model"
    ),
    options=lambda: [EvaluateOptions],
    run=evaluate.run,
    show=show,
    as_json=as_json,
)
