"""Floor 4: `DistillationTrainer`, its settings, exact resume."""

from nonpareil.training.config import DistillationConfig
from nonpareil.training.trainer import DistillationTrainer

__all__ = ["DistillationConfig", "DistillationTrainer"]
