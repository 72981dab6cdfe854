"""Markdown of what benchmarks.quality measured."""

from __future__ import annotations

import statistics
from typing import Any

WITH_SOLVER = ("on_policy", "end_to_end")  # these train three components: a LoRA for each phase, and a solver
_HEAD = (
    "method", "prompts", "steps", "model calls", "PSNR, dB", "to the control, dB", "background", "all right", "FD",
    "training, s", "commit",
)  # fmt: skip


def table(measured: dict[str, Any], nfe: int | None = None) -> str:
    """Return one line for each method. Seeds of training are one line: their mean, and the errors.

    Args:
        nfe: only rows with this many model calls, and the teacher.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in measured["rows"]:
        if nfe in (None, row["nfe"]) or row["method"] == "teacher":
            groups.setdefault((row["method"], row["steps"], row["nfe"], row["prompts"]), []).append(row)
    lines = [_line(_HEAD), "|---" * len(_HEAD) + "|", *(_line(_cells(rows)) for rows in groups.values())]
    note = (
        f"{measured['count']} prompts drawn by seed {measured['seed']}, {measured['date']}. ± is one standard error "
        "over pictures; a second ± is one over seeds of training. Training: the seconds of each run; an asterisk marks "
        f"one thread. Commit: the code that measured the rows, if known. Machine: {measured['machine']}."
    )
    return "\n".join([*lines, "", note])


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    row = rows[0]
    kept = sorted({row["kept"] for row in rows if row["kept"] and not _is_everything(row)})
    return (
        row["method"] + (f" (kept: {'; '.join(kept)})" if kept else ""),
        str(row["prompts"] or "-"),
        str(row["steps"]),
        str(row["nfe"]),
        _mean(rows, "psnr", 2),
        _mean(rows, "paired_to_control", 2, "+"),
        *(_mean(rows, name, 3) for name in ("background", "all_right", "fd")),
        _training(rows),
        ", ".join(dict.fromkeys(row.get("commit") or "older" for row in rows)),
    )


def _is_everything(row: dict[str, Any]) -> bool:
    """Return whether all components that the method can train were kept."""
    return len(row["kept"].split(",")) == (3 if row["method"].startswith(WITH_SOLVER) else 2)


def _training(rows: list[dict[str, Any]]) -> str:
    """Return the seconds of each run; those on one thread are marked."""
    runs = [row for row in rows if row["train_s"] is not None]
    return ", ".join(f"{row['train_s']:.0f}" + ("*" if row["threads"] == 1 else "") for row in runs) or "-"


def _mean(rows: list[dict[str, Any]], name: str, digits: int, sign: str = "") -> str:
    """Return the mean over seeds, its error over pictures and, with several seeds, over seeds."""
    found = [row for row in rows if row[name] is not None]
    if not found:
        return "-"
    values = [row[name] for row in found]
    error = statistics.fmean(row[f"{name}_error"] for row in found)
    text = f"{statistics.fmean(values):{sign}.{digits}f} ± {error:.{digits}f}"
    return text + (f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else "")
