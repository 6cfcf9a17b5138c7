"""The trainer's own settings, one class per group: what transformers' `TrainingArguments` lacks or sets otherwise.

Neither torch nor transformers is imported here, so that a help text can list them at once.
`training.config.DistillationConfig` puts them before transformers' own.
"""

from dataclasses import dataclass

from nonpareil.training.settings.drawing import DrawingSettings
from nonpareil.training.settings.hardware import HardwareSettings
from nonpareil.training.settings.length import LengthSettings
from nonpareil.training.settings.lora import LoraSettings
from nonpareil.training.settings.method import MethodSettings
from nonpareil.training.settings.model import ModelSettings
from nonpareil.training.settings.optimization import OptimizationSettings
from nonpareil.training.settings.rewards import RewardSettings
from nonpareil.training.settings.template import TemplateSettings
from nonpareil.training.settings.vllm import VLLMSettings


@dataclass
class DistillationSettings(
    VLLMSettings,
    HardwareSettings,
    LoraSettings,
    OptimizationSettings,
    LengthSettings,
    RewardSettings,
    TemplateSettings,
    DrawingSettings,
    ModelSettings,
    MethodSettings,
):
    """All of them together; a dataclass has the fields of its last base first."""
