"""Which of two values is the better one. Without torch."""

from __future__ import annotations

# By task, the metric that chooses the best model where train.best_by names none, without `val_`; and whether less of it is better.
BEST_BY = {
    "lm": ("nats_per_char", True),
    "fill": ("nats_per_blank", True),
    "classify": ("accuracy", False),
    "tag": ("f1", False),
    "transcribe": ("char_error_rate", True),
    "caption": ("nats_per_char", True),
}


def less_is_better(metric: str) -> bool:
    """Of a metric's name, with `val_` before it or not."""
    return metric.removeprefix("val_").startswith(("nats_per_", "bits_per_", "perplexity")) or metric.endswith("_error_rate")
