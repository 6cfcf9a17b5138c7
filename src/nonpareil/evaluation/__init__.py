"""The honest yardstick: what best-of-N is worth, and how near to it a policy came."""

from nonpareil.evaluation.curve import CurveReport, best_of_n_report
from nonpareil.evaluation.evaluation import Evaluation
from nonpareil.evaluation.metrics import evaluate_groups

__all__ = ["CurveReport", "Evaluation", "best_of_n_report", "evaluate_groups"]
