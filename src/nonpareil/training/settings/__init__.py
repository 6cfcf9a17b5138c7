"""The trainer's own settings, a class a group: all that transformers' `TrainingArguments` has not, or otherwise.

Neither torch nor transformers is imported here, so that a help text can list them at once.
`training.config.DistillationConfig` puts them before transformers' own.
"""

from dataclasses import dataclass

from nonpareil.training.settings.drawing import DrawingSettings
from nonpareil.training.settings.hardware import HardwareSettings
from nonpareil.training.settings.lora import LoraSettings
from nonpareil.training.settings.method import MethodSettings
from nonpareil.training.settings.optimization import OptimizationSettings
from nonpareil.training.settings.rewards import RewardSettings
from nonpareil.training.settings.vllm import VLLMSettings

GROUPS = (
    MethodSettings,
    DrawingSettings,
    RewardSettings,
    OptimizationSettings,
    LoraSettings,
    HardwareSettings,
    VLLMSettings,
)
"""In the order in which they are listed."""


@dataclass
class DistillationSettings(
    VLLMSettings,
    HardwareSettings,
    LoraSettings,
    OptimizationSettings,
    RewardSettings,
    DrawingSettings,
    MethodSettings,
):
    """All of them together; a dataclass has the fields of its last base first."""
