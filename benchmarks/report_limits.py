"""The limits that measured numbers are held against."""

from __future__ import annotations

from math import comb

from .report_tables import TRAINED, Found, number, ratio

STEP = 1.03  # a step of the pair to one of the base
LOADING = 0.3  # seconds of ComfyUI's start
PREDICTED = 0.1  # relative error of predicted memory
CHANCE = 0.05  # below this p of the sign test, a rival that is faster does not count as a tie
_CHECKED_TOKENS = 4096

Line = list[str]  # what, limit, measured, holds


def step_limit(found: Found | None) -> list[Line]:
    """Hold the step of the pair against the step of the base."""
    rows = found["rows"] if found else []
    row = next((row for row in rows if (row["axis"], row["value"]) == ("tokens", _CHECKED_TOKENS)), None)
    what = f"a step of the pair to one of the base, {_CHECKED_TOKENS} tokens, rank 32"
    value = ratio(row, "ratio_to_base") if row else None
    return [_line(what, f"at most {STEP}", value, _yes(bool(row) and row["ratio_to_base"] <= STEP))]


def training_limit(found: Found | None) -> list[Line]:
    """Hold rivals' training steps against this pack's.

    It is one line if no rival is faster by its median, else one line for each that is.
    """
    what, limit = "a rival's training step to this pack's", "at least 1"
    if not found:
        return [_line(what, limit, None, "")]
    compared = [row for row in found["rows"] if row["method"] != "ours" and row["ratio_to_ours"]]
    faster = [row for row in compared if row["ratio_to_ours"] < 1]
    if not faster:
        return [_line(what, limit, f"{min(row['ratio_to_ours'] for row in compared):.2f} and more", "yes")]
    ours = {_case(row): row["peak_mb"] for row in found["rows"] if row["method"] == "ours"}
    lines = []
    for row in faster:
        memory = f"{number(row['peak_mb'], 0)} MB to this pack's {number(ours[_case(row)], 0)}"
        odds = chance(row["faster"], row["rounds"])
        won = f"faster in {row['faster']} of {row['rounds']} rounds, p = {odds:.2g}"
        checkpointing = ", checkpointing" if row["checkpointing"] else ""
        name = f"{what}: {TRAINED[row['method']]} on {row['model']}, {row['dtype']}{checkpointing}"
        holds = f"no: {won}" if odds < CHANCE else f"a tie: {won}"
        lines.append(_line(name, limit, f"{ratio(row, 'ratio_to_ours', 2)}; {memory}", holds))
    return lines


def _case(row: dict) -> tuple:
    return row["model"], row["dtype"], row["checkpointing"]


def chance(won: int, rounds: int) -> float:
    """Return the p of a two-sided sign test.

    It is the probability that one of two equally fast methods wins at least so many of the rounds.
    """
    return min(1.0, 2 * sum(comb(rounds, k) for k in range(max(won, rounds - won), rounds + 1)) / 2**rounds)


def startup_limit(found: Found | None) -> list[Line]:
    """Hold the time that ComfyUI takes to load the pack."""
    rows = found["rows"] if found else []
    value = next((row["loading"] for row in rows if row["pack"] == "glance"), None)
    what = "seconds that ComfyUI takes to load the pack"
    return [_line(what, f"below {LOADING}", value and f"{value:.2f}", _yes(bool(value) and value < LOADING))]


def memory_limit(found: Found | None) -> list[Line]:
    """Hold predicted memory against measured memory."""
    ratios = [row["ratio"] for row in found["check"]] if found else []
    value = f"{min(ratios):.3f} .. {max(ratios):.3f}" if ratios else None
    holds = _yes(all(abs(each - 1) <= PREDICTED for each in ratios))
    return [_line("predicted memory to measured", f"within {PREDICTED:.0%}", value, holds)]


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _line(what: str, limit: str, value: str | None, holds: str) -> Line:
    return [what, limit, value or "not measured yet", holds if value else "-"]


LIMITS = {
    "growth": step_limit,
    "training_speed": training_limit,
    "startup": startup_limit,
    "memory": memory_limit,
}
