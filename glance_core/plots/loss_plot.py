"""Plot the losses of a training run: by step for each phase, and at each sigma before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..schedule.split import FAST, SLOW
from ..training.history import History
from .canvas import COLOURS, GAP, HALF, HEIGHT, INK, WIDTH, Panel, Sheet, log_bounds

if TYPE_CHECKING:
    from PIL import Image as PillowImage

_PALE = {SLOW: (190, 206, 232), FAST: (244, 212, 188)}
_RUNNING = 10  # steps that the thick line averages


@dataclass(frozen=True)
class LossPlot:
    """What to plot. sigmas: of the student's steps; Slow has the first `slow_steps`. per_step: examples of one step."""

    history: History
    sigmas: Sequence[float]
    slow_steps: int
    per_step: int
    title: str


def plot_losses(plot: LossPlot) -> PillowImage.Image:
    """Return the plot."""
    sheet = Sheet(plot.title)
    _by_training_step(sheet, plot)
    _by_sigma(sheet, plot)
    return sheet.image


def _by_training_step(sheet: Sheet, plot: LossPlot) -> None:
    steps_of = {SLOW: range(plot.slow_steps), FAST: range(plot.slow_steps, len(plot.sigmas))}
    columns = {phase: _means(plot.history, steps, plot.per_step) for phase, steps in steps_of.items()}
    box = (GAP, 84, HALF, HEIGHT - 62)
    bounds = log_bounds([loss for column in columns.values() for loss in column])
    panel = Panel(sheet, box, "loss by step (thin), mean of the last ten (thick)", bounds)
    longest = max((len(column) for column in columns.values()), default=1)
    for phase, column in columns.items():
        panel.line([(i / max(1, longest - 1), value) for i, value in enumerate(column)], _PALE[phase], 1)
        panel.line([(i / max(1, longest - 1), value) for i, value in enumerate(_running(column))], COLOURS[phase], 3)
    for i, phase in enumerate(columns):
        x = GAP + 8 + 70 * i
        sheet.draw.rectangle([x, 66, x + 9, 75], COLOURS[phase])
        sheet.draw.text((x + 15, 62), phase, COLOURS[phase], sheet.small)
    panel.ticks([(0, "1"), (1, f"{longest} steps")])


def _by_sigma(sheet: Sheet, plot: LossPlot) -> None:
    firsts, lasts = zip(*(_ends(plot.history, step) for step in range(len(plot.sigmas))), strict=True)
    box = (HALF + GAP + 24, 84, WIDTH - 24, HEIGHT - 62)
    bounds = log_bounds([value for value in (*firsts, *lasts) if value is not None])
    panel = Panel(sheet, box, "mean loss at each sigma: first third (ring), last third (disc)", bounds)
    count = len(plot.sigmas)
    for step, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        if first is not None and last is not None:
            panel.change((step + 0.5) / count, first, last, COLOURS[SLOW if step < plot.slow_steps else FAST])
    sheet.draw.text((WIDTH - 64, HEIGHT - 30), "sigma", INK, sheet.small)
    panel.ticks([((step + 0.5) / count, f"{sigma:.3f}") for step, sigma in enumerate(plot.sigmas)])


def _means(history: History, steps: range, per_step: int) -> list[float]:
    """Return the mean loss of each training step of a phase."""
    own = [loss for step, loss in zip(history.steps, history.losses, strict=True) if step in steps]
    return [sum(own[i : i + per_step]) / len(own[i : i + per_step]) for i in range(0, len(own), per_step)]


def _running(column: Sequence[float]) -> list[float]:
    windows = [column[max(0, i - _RUNNING + 1) : i + 1] for i in range(len(column))]
    return [sum(window) / len(window) for window in windows]


def _ends(history: History, step: int) -> tuple[float | None, float | None]:
    """Return the mean loss of the first and of the last third of the examples at this step."""
    own = [loss for at, loss in zip(history.steps, history.losses, strict=True) if at == step]
    if not own:
        return None, None
    third = max(1, len(own) // 3)
    return sum(own[:third]) / third, sum(own[-third:]) / third
