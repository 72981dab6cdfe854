"""Judge pictures of the embedded model against the teacher's of the same prompts and noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..evaluation.metrics import Measure, frechet_measure, paired, psnr
from ..schedule.sigmas import TEACHER_STEPS
from .evaluator import Evaluator, Reading, judge, read
from .world import Scenes


@dataclass(frozen=True)
class Row:
    """One method in a table.

    nfe: model calls per picture. seconds: for all pictures. psnr (dB) and fd are to the teacher. gain: psnr paired to
    the control's. all_right, objects, position, background: shares of pictures.
    """

    method: str
    steps: int
    nfe: int
    seconds: float | None
    psnr: Measure | None
    all_right: Measure
    objects: Measure
    position: Measure
    background: Measure
    fd: Measure | None
    gain: Measure | None = None

    def describe(self) -> dict[str, object]:
        """Return plain values, each measure as [value, standard error]."""
        return {
            name: [value.value, value.error] if isinstance(value, Measure) else value
            for name, value in vars(self).items()
        }


class Judge:
    """Holds the teacher's pictures and what the evaluator sees in them."""

    def __init__(self, evaluator: Evaluator, scenes: Scenes, teacher: Tensor) -> None:
        self.evaluator, self.scenes, self.teacher = evaluator, scenes, teacher
        self.reading = read(evaluator, teacher)

    def row(
        self, method: str, pictures: Tensor, steps: int, nfe: int, seconds: float, control: Tensor | None = None
    ) -> Row:
        """Return a method's row.

        Args:
            control: pictures of the method that `gain` is paired to.
        """
        reading = read(self.evaluator, pictures)
        to_teacher = psnr(pictures, self.teacher)
        gain = paired(to_teacher, psnr(control, self.teacher)) if control is not None else None
        fd = frechet_measure(reading.features, self.reading.features)
        return Row(method, steps, nfe, seconds, Measure.of(to_teacher), *self._right(reading), fd, gain)

    def teacher_row(self) -> Row:
        """Return the teacher's own row: every step, under guidance."""
        return Row("teacher", TEACHER_STEPS, 2 * TEACHER_STEPS, None, None, *self._right(self.reading), None)

    def _right(self, reading: Reading) -> tuple[Measure, Measure, Measure, Measure]:
        """Return the shares of pictures that are right: in all, and in each part of the prompt."""
        right = {name: Measure.of(column) for name, column in judge(reading, self.scenes).items()}
        return right["all"], right["objects"], right["position"], right["background"]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table that also reads well on a terminal."""
    head = ["method", "steps", "model calls", "seconds", "PSNR, dB", "gain, dB", "all right", "background", "FD"]
    body = [
        [
            row.method,
            str(row.steps),
            str(row.nfe),
            "-" if row.seconds is None else f"{row.seconds:.1f}",
            _text(row.psnr, 2),
            _text(row.gain, 2, "+"),
            _text(row.all_right, 3),
            _text(row.background, 3),
            _text(row.fd, 3),
        ]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [head, *body]
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def as_json(rows: Sequence[Row], **more: object) -> str:
    """Return the rows and more values as JSON."""
    return json.dumps({**more, "rows": [row.describe() for row in rows]})


def _text(measure: Measure | None, digits: int, sign: str = "") -> str:
    return "-" if measure is None else f"{measure.value:{sign}.{digits}f} ± {measure.error:.{digits}f}"
