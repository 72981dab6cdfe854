"""Markdown tables of what each benchmark's JSON holds. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Found = dict[str, Any]  # the JSON of a benchmark
Row = dict[str, Any]

SAMPLED = {
    "base": "base",
    "phase_split": "**this pack**",
    "chained": "two samplers, a LoRA merged for each",
    "core_hooks": "LoRA hooks with keyframes",
    "core_bypass": "bypass LoRA (one adapter, cannot switch)",
}
STACKED = {
    "base": "base",
    "noise_level": "**this pack**, whole run",
    "by_step": "**this pack**, a strength for each step",
    "merged": "Load LoRA (merged)",
    "bypass": "Load LoRA (Bypass)",
    "hooks": "LoRA hooks with keyframes",
    "chained": "two samplers, LoRAs merged for the first",
}
TRAINED = {
    "ours": "**this pack**",
    "peft": "PEFT loop",
    "core": "Train LoRA",
    "core_bypass": "Train LoRA with bypass",
}
_KEPT = {True: "block inputs", False: "everything", None: "-"}  # for backward, with checkpointing and without


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def aligned_table(columns: dict[str, Callable[[Row], str]], rows: Sequence[Row]) -> str:
    """Return a Markdown table with columns of even width, also for reading as text."""
    cells = [list(columns), *([show(row) for show in columns.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def ratio(row: Row, name: str, digits: int = 3) -> str:
    """Return a median with its spread over rounds."""
    if row[name] is None:
        return "-"
    low, high = row["ratio_spread"]
    return f"{row[name]:.{digits}f} ({low:.{digits}f} .. {high:.{digits}f})"


def number(value: float | None, digits: int) -> str:
    """Return a number as text, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def sampling_table(found: Found) -> str:
    """Return the table of benchmarks.sampling_speed."""
    head = ["method", "dtype", "ratio to base", "seconds", "switch, ms", "extra memory, MB", "pair, MB", "rounds"]
    return table(head, [_sampling_cells(row) for row in found["rows"]])


def _sampling_cells(row: Row) -> list[str]:
    method, dtype = row["method"].split("/")
    return [
        SAMPLED[method],
        dtype,
        ratio(row, "ratio_to_base"),
        number(row["seconds"], 1),
        number(row["switch_ms"], 3 if method == "phase_split" else 0),
        number(row["extra_mb"], 0),
        number(None if method == "base" else row["pair_mb"], 0),
        str(row["rounds"]),
    ]


def stacked_table(found: Found) -> str:
    """Return the table of benchmarks.stacked_loras."""
    head = [
        "LoRAs",
        "method",
        "dtype",
        "ratio to base",
        "seconds",
        "change to first call, s",
        "extra memory, MB",
        "rounds",
    ]
    rows = []
    for row in found["rows"]:
        method, dtype = row["method"].split("/")
        numbers = [
            number(row["seconds"], 2),
            number(row["change_s"], 2),
            number(row["extra_mb"], 0),
            str(row["rounds"]),
        ]
        rows.append([str(row["loras"]), STACKED[method], dtype, ratio(row, "ratio_to_base"), *numbers])
    return table(head, rows)


def growth_table(found: Found) -> str:
    """Return the table of benchmarks.growth."""
    head = ["what changes", "to", "ratio to base", "step of the base, s", "step of the pair, s", "pair, MB"]
    rows = [
        [
            row["axis"],
            str(row["value"]),
            ratio(row, "ratio_to_base"),
            number(row["seconds_base"], 3),
            number(row["seconds_pair"], 3),
            number(row["pair_mb"], 1),
        ]
        for row in found["rows"]
    ]
    return f"{table(head, rows)}\n\n{found['dtype']}, {found['rounds']} rounds."


def training_table(found: Found) -> str:
    """Return the table of benchmarks.training_speed."""
    head = [
        *("model", "stored in", "checkpointing", "method", "ratio to this pack", "s per step", "MB", "rounds"),
        *("faster in", "note"),
    ]
    return table(head, [_training_cells(row) for row in found["rows"]])


def _training_cells(row: Row) -> list[str]:
    ours = row["method"] == "ours"
    return [
        row["model"],
        row["dtype"],
        "yes" if row["checkpointing"] else "no",
        TRAINED[row["method"]],
        "1" if ours else ratio(row, "ratio_to_ours", 2),
        number(row["seconds_per_step"], 3),
        number(row["peak_mb"], 0),
        str(row["rounds"]),
        "-" if ours else number(row["faster"], 0),
        row["note"],
    ]


def memory_table(found: Found) -> str:
    """Return the tables of benchmarks.memory: the predictions, and the check."""

    def gb(name: str) -> Callable[[Row], str]:
        return lambda row: f"{row[name + '_gb']:.2f}"

    predictions = {
        "model": lambda row: row["model"],
        "pass": lambda row: row["pass"],
        "stored": lambda row: row["stored"],
        "kept": lambda row: _KEPT[row["checkpointing"]],
        "offload": lambda row: row["offload"],
        "optimizer": lambda row: row["optimizer"] or "-",
        "cfg": lambda row: f"{row['cfg']:g}",
        "weights": gb("resident_weights"),
        "adapters": gb("adapters"),
        "states": gb("optimizer"),
        "activations": gb("activations"),
        "tracked": gb("tracked"),
        "extras": lambda row: f"{row['predicted_gb'] - row['tracked_gb']:.2f}",
        "predicted, GB": gb("predicted"),
    }
    check = {
        "model": lambda row: row["model"],
        "stored": lambda row: row["stored"],
        "checkpointing": lambda row: str(row["checkpointing"]),
        "predicted, MB": lambda row: f"{row['predicted_mb']:.1f}",
        "measured, MB": lambda row: f"{row['measured_mb']:.1f}",
        "ratio": lambda row: f"{row['ratio']:.3f}",
    }
    parts = ((predictions, found["rows"]), (check, found["check"]))
    return "\n\n".join(aligned_table(columns, rows) for columns, rows in parts if rows)


def startup_table(found: Found) -> str:
    """Return the table of benchmarks.startup."""
    head = ["pack", "start, s", "CPU, s", "added to none, CPU s (min .. max)", "loading, s"]
    rows = []
    for row in found["rows"]:
        low, high = row["cpu_added_range"] or (None, None)
        added = "-" if low is None else f"{row['cpu_added']:+.2f} ({low:+.2f} .. {high:+.2f})"
        name = "**this pack**" if row["pack"] == "glance" else row["pack"]
        rows.append([name, number(row["seconds"], 2), number(row["cpu_seconds"], 2), added, number(row["loading"], 2)])
    return f"{table(head, rows)}\n\n{found['rounds']} starts of each."
