"""Scores and reports: preference and similarity scorers on plain transformers classes, win rates, evaluation, pages.

Cheap to import: torch, transformers, scipy and matplotlib are imported where they are first used.
"""

from .statistics import AGGREGATIONS, Interval, aggregate, mean_difference_interval, win_rate, win_rate_interval

__all__ = ["AGGREGATIONS", "Interval", "aggregate", "mean_difference_interval", "win_rate", "win_rate_interval"]
