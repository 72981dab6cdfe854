"""Markdown of what benchmarks.quality measured."""

from __future__ import annotations

import statistics
from typing import Any

WITH_SOLVER = ("aimed", "end to end")  # what these train has three parts: a LoRA for each phase, and a solver


def table(measured: dict[str, Any], only: int | None = None) -> str:
    """Markdown: one line for each method, seeds side by side as their mean, with the error over pictures and over seeds. only: forwards."""
    together: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in measured["rows"]:
        if only not in (None, row["forwards"]) and row["method"] != "teacher":
            continue
        together.setdefault((row["method"], row["steps"], row["forwards"], row["prompts"]), []).append(row)
    lines = [
        "| method | prompts | steps | forwards | PSNR, dB | to the control, dB | background | all right | FD | training, s | commit |",
        "|---" * 11 + "|",
    ]
    for (method, steps, forwards, prompts), rows in together.items():
        kept = sorted({row["kept"] for row in rows if row["kept"] and row["kept"].count(",") < _parts(method) - 1})
        cells = [method + (f" (kept: {'; '.join(kept)})" if kept else ""), str(prompts or "-"), str(steps), str(forwards)]
        cells += [
            _shown(rows, "psnr", 2),
            _shown(rows, "paired_to_control", 2, "+"),
            *(_shown(rows, name, 3) for name in ("background", "all_right", "fd")),
        ]
        lines.append("| " + " | ".join([*cells, _training(rows), _commits(rows)]) + " |")
    note = (
        f"{measured['count']} prompts drawn by seed {measured['seed']}, {measured['date']}; ± one standard error over pictures, and where there are "
        f"several seeds of training a second ± over those; training is told run by run, * on one thread; commit: at which rows were measured, where it was kept; {measured['machine']}."
    )
    return "\n".join([*lines, "", note])


def _training(rows: list[dict[str, Any]]) -> str:
    """Seconds of each run, those on one thread marked."""
    return ", ".join(f"{row['train_s']:.0f}" + ("*" if row["threads"] == 1 else "") for row in rows if row["train_s"] is not None) or "-"


def _commits(rows: list[dict[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(row.get("commit") or "older" for row in rows))


def _parts(method: str) -> int:
    return 3 if method.startswith(WITH_SOLVER) else 2


def _shown(rows: list[dict[str, Any]], name: str, digits: int, sign: str = "") -> str:
    found = [row for row in rows if row[name] is not None]
    if not found:
        return "-"
    values = [row[name] for row in found]
    text = f"{statistics.fmean(values):{sign}.{digits}f} ± {statistics.fmean(row[f'{name}_error'] for row in found):.{digits}f}"
    return text + (f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else "")
