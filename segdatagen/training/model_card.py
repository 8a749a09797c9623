"""Model cards: what weights say of the training that made them, for people.

Rows that every kind has are written here, and the whole configuration; a kind adds its own. It knows no network.
"""

from collections.abc import Mapping

import yaml
from torch import nn

from segdatagen.training.data import TrainingData
from segdatagen.training.kind import Summary
from segdatagen.training.options import TrainingOptions


def size_rows(network: nn.Module, options: TrainingOptions) -> dict[str, str]:
    """How many parameters are put."""
    count = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": f"{count:,}, stored as {options.store_dtype}"}


def training_rows(
    options: TrainingOptions, data: TrainingData, summary: Summary, start: str | None = None
) -> dict[str, str]:
    """Data, size, steps, optimizer and time of a training.

    `start` is what it starts from, in words; None: from `init_weights`, or from random weights.
    """
    labels = data.label_set
    init = "random weights" if options.init_weights is None else f"`{options.init_weights}`"
    ema = f"{options.ema_decay:g} after {options.ema_start:,} steps"
    return {
        "classes": f"{labels.num_classes} of {labels.name}: {', '.join(labels.names)}",
        "data": f"`{options.sources}`, {summary.num_images:,} images, fingerprint `{summary.data_fingerprint}`",
        "size": f"{options.size[0]} x {options.size[1]}, fit {options.fit}",
        "starts from": start or init,
        "steps": f"{summary.steps:,} of batch {options.batch_size}"
        + ("" if summary.num_workers == 1 else f", shared by {summary.num_workers} workers")
        + ("" if options.accumulate == 1 else f", each share in {options.accumulate} parts"),
        "seed": f"{options.seed}; {'mirrored half of the time' if options.flip else 'never mirrored'}",
        "precision": summary.precision,
        "optimizer": f"AdamW, {options.learning_rate:g}, {options.learning_rate_schedule}, "
        f"warm-up {options.warmup_steps} steps" + _clipped(options),
        "average of the weights": ema,
        "time": f"{summary.seconds / 60:.0f} minutes" if summary.seconds >= 90 else "less than 90 seconds",
        "speed": summary.speed,
        "last loss (smoothed)": f"{summary.loss:.4f}",
        **({} if summary.validation_loss is None else {"validation loss": f"{summary.validation_loss:.4f}"}),
        "licence": "that of the data, and of the weights it starts from; segdatagen adds no terms",
        "command": f"`{summary.command}`",
    }


def _clipped(options: TrainingOptions) -> str:
    return "" if options.max_grad_norm is None else f", gradients up to {options.max_grad_norm:g}"


def model_card(title: str, rows: Mapping[str, str], options: TrainingOptions) -> str:
    """A heading, a table, and the configuration with all defaults, as Markdown.

    Without `max_hours`: on Ray it is what was left of it, and it decides nothing of the weights.
    """
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    told = yaml.safe_dump(options.model_dump(mode="json", exclude={"max_hours"}), sort_keys=False)
    return f"# {title}\n\n| | |\n|---|---|\n{table}\n\n```yaml\n{told}```\n"
