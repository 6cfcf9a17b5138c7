"""What a rule may read of candidates beside their rewards, and where it comes from."""

from typing import Literal

Need = Literal["answers", "logprobs", "similarity", "lengths"]
REMEDIES: dict[Need, str] = {
    "answers": "read them from the texts",
    "logprobs": "draw with an engine that gives log-probs",
    "similarity": "compare the texts",
    "lengths": "draw with an engine that gives token ids",
}
"""What to do where it is not there."""
