"""`nonpareil compare`: several methods under one budget, on one Pareto picture."""
