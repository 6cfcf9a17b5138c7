"""`nonpareil distill`: data, training, evaluation, report and card."""
