"""Markdown of what each benchmark's JSON holds, and the limits that it is held against."""

from __future__ import annotations

from math import comb
from typing import Any

from .quality_table import table as quality_table

SAMPLED = {
    "base": "bare base", "phase_split": "**this pack**", "chained": "two samplers, a LoRA merged for each", "core_hooks": "LoRA hooks with keyframes",
    "core_bypass": "bypass LoRA (one adapter, cannot switch)",
}  # fmt: skip
TRAINED = {"ours": "**this pack**", "peft": "PEFT loop", "core": "Train LoRA", "core_bypass": "Train LoRA with bypass"}
STEP, LOADING, PREDICTED = 1.03, 0.3, 0.1  # the pair's step to the bare one; seconds of ComfyUI's start; of memory
CHANCE = 0.05  # of so many rounds, or more, won by either of two that are equally quick: below it the difference is not called a tie
Found = dict[str, Any]


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def ratio(row: Found, name: str, digits: int = 3) -> str:
    if row[name] is None:
        return "-"
    low, high = row["ratio_spread"]
    return f"{row[name]:.{digits}f} ({low:.{digits}f} .. {high:.{digits}f})"


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def sampling(found: Found) -> str:
    head = ["method", "", "ratio to base", "seconds", "switch, ms", "extra memory, MB", "pair, MB", "rounds"]
    rows = []
    for row in found["rows"]:
        method, dtype = row["method"].split("/")
        digits = 3 if method == "phase_split" else 0
        pair = None if method == "base" else row["pair_mb"]
        rows.append([
            SAMPLED[method], dtype, ratio(row, "ratio_to_base"), number(row["seconds"], 1), number(row["switch_ms"], digits), number(row["extra_mb"], 0),
            number(pair, 0), str(row["rounds"]),
        ])  # fmt: skip
    return table(head, rows)


def growth(found: Found) -> str:
    head = ["what changes", "", "ratio to bare", "bare step, s", "pair's step, s", "pair, MB"]
    return table(
        head,
        [
            [row["axis"], str(row["value"]), ratio(row, "ratio_to_bare"), number(row["seconds_bare"], 3), number(row["seconds_pair"], 3), number(row["pair_mb"], 1)]
            for row in found["rows"]
        ],
    ) + f"\n\n{found['dtype']}, {found['rounds']} rounds."  # fmt: skip


def training(found: Found) -> str:
    head = ["model", "stored in", "checkpointing", "method", "ratio to this pack", "s a step", "MB", "rounds", "quicker in", ""]
    rows = []
    for row in found["rows"]:
        compared = "1" if row["method"] == "ours" else ratio(row, "ratio_to_ours", 2)
        method = TRAINED[row["method"]]
        rows.append([
            row["model"], row["dtype"], "yes" if row["checkpointing"] else "no", method, compared, number(row["seconds_per_step"], 3), number(row["peak_mb"], 0),
            str(row["rounds"]), "-" if row["method"] == "ours" else number(row["quicker"], 0), row["note"],
        ])  # fmt: skip
    return table(head, rows)


def memory(found: Found) -> str:
    from .memory import shown

    return shown(found).removesuffix(found["machine"]).strip()


def quality(found: Found) -> str:
    return quality_table(found, 10)


def startup(found: Found) -> str:
    head = ["pack", "start, s", "CPU, s", "added to none, CPU s (min .. max)", "loading, s"]
    rows = []
    for row in found["rows"]:
        low, high = row["cpu_added_range"] or (None, None)
        added = "-" if low is None else f"{row['cpu_added']:+.2f} ({low:+.2f} .. {high:+.2f})"
        name = "**this pack**" if row["pack"] == "glance" else row["pack"]
        rows.append([name, number(row["seconds"], 2), number(row["cpu_seconds"], 2), added, number(row["loading"], 2)])
    return f"{table(head, rows)}\n\n{found['rounds']} starts of each."


def _held(what: str, limit: str, value: str | None, holds: str) -> list[str]:
    return [what, limit, value or "not measured yet", holds if value else "-"]


def _step(found: Found | None) -> list[list[str]]:
    rows = [row for row in (found or {"rows": []})["rows"] if (row["axis"], row["value"]) == ("tokens", 4096)]
    value, holds = (ratio(rows[0], "ratio_to_bare"), "yes" if rows[0]["ratio_to_bare"] <= STEP else "no") if rows else (None, "")
    return [_held("the pair's step to the bare one, 4096 tokens, rank 32", f"at most {STEP}", value, holds)]


def chance(won: int, rounds: int) -> float:
    """Two-sided sign test: the probability that of two equally quick methods one wins so many of the rounds, or more."""
    return min(1.0, 2 * sum(comb(rounds, k) for k in range(max(won, rounds - won), rounds + 1)) / 2**rounds)


def _training(found: Found | None) -> list[list[str]]:
    """One line if no rival is quicker by its median, else one for each that is."""
    what, limit = "a rival's training step to this pack's", "at least 1"
    if not found:
        return [_held(what, limit, None, "")]
    compared = [row for row in found["rows"] if row["method"] != "ours" and row["ratio_to_ours"]]
    quicker = [row for row in compared if row["ratio_to_ours"] < 1]
    if not quicker:
        return [_held(what, limit, f"{min(row['ratio_to_ours'] for row in compared):.2f} and more", "yes")]
    own = {(row["model"], row["dtype"], row["checkpointing"]): row["peak_mb"] for row in found["rows"] if row["method"] == "ours"}
    lines = []
    for row in quicker:
        model = row["model"], row["dtype"], row["checkpointing"]
        memory = f"; {number(row['peak_mb'], 0)} MB to this pack's {number(own[model], 0)}"
        odds = chance(row["quicker"], row["rounds"])
        told = f"quicker in {row['quicker']} of {row['rounds']} rounds, p = {odds:.2g}"
        holds = f"no: {told}" if odds < CHANCE else f"a tie: {told}"
        name = f"{what}: {TRAINED[row['method']]} on {row['model']}, {row['dtype']}{', checkpointing' * row['checkpointing']}"
        lines.append(_held(name, limit, ratio(row, "ratio_to_ours", 2) + memory, holds))
    return lines


def _startup(found: Found | None) -> list[list[str]]:
    value = next((row["loading"] for row in found["rows"] if row["pack"] == "glance"), None) if found else None
    return [
        _held(
            "seconds that ComfyUI takes to load the pack",
            f"below {LOADING}",
            value and f"{value:.2f}",
            "yes" if value and value < LOADING else "no",
        )
    ]


def _memory(found: Found | None) -> list[list[str]]:
    ratios = [row["ratio"] for row in found["check"]] if found else []
    holds = "yes" if all(abs(each - 1) <= PREDICTED for each in ratios) else "no"
    value = f"{min(ratios):.3f} .. {max(ratios):.3f}" if ratios else None
    return [_held("predicted memory to measured", f"within {PREDICTED:.0%}", value, holds)]


LIMITS = {"growth": _step, "training": _training, "startup": _startup, "memory": _memory}
