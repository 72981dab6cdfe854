"""What the log says after a sampling run about the adapters on its model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ...glance_core.schedule.phase_schedule import phase_index
from ...glance_core.schedule.split import FAST, SLOW
from ...glance_core.schedule.strengths import StrengthCurve, run_phases
from .adapter_timing import PairBoundary
from .log import log

_PHASES = (SLOW, FAST)


def report_run(
    calls: Counter[float], boundaries: Iterable[PairBoundary], others: Sequence[tuple[str, StrengthCurve]] = ()
) -> None:
    """Log how often each phase of each pair answered, and when each other adapter did.

    Args:
        calls: model calls by sigma.
        others: the adapters that belong to no pair, by name.
    """
    if not calls:
        log.warning("Glance: the sampler never called the model in the usual way, so the LoRAs had no effect")
        return
    for boundary in boundaries:
        _report_pair(calls, boundary)
    for name, curve in others:
        _report_other(name, curve, calls)


def _report_other(name: str, curve: StrengthCurve, calls: Counter[float]) -> None:
    acting = sum(count for sigma, count in calls.items() if curve.at(sigma))
    if not acting and any(curve.strengths):
        log.warning("Glance: %s had no effect, since no model call lay in its range of noise levels", name)
    elif curve.thresholds:
        phases = run_phases([curve])  # neighbours with the same strength are one
        strengths = " -> ".join(f"{strength:g}" for (strength,) in phases.strengths)
        sigmas = ", ".join(f"{sigma:.4f}" for sigma in phases.thresholds)
        where = f" at sigma {sigmas}" if sigmas else ""
        log.info(
            "Glance: %s acted in %d of %d model calls; strength %s%s", name, acting, calls.total(), strengths, where
        )


def _report_pair(calls: Counter[float], boundary: PairBoundary) -> None:
    phases: Counter[str] = Counter()
    for sigma, count in calls.items():
        phases[_PHASES[phase_index(sigma, (boundary.threshold,))]] += count
    counts = ", ".join(f"{phases[phase]} {phase}" for phase in _PHASES)
    if not boundary.partial and len(phases) < len(_PHASES):
        log.warning(
            "Glance: all model calls were in one phase (%s); this run's sigmas never cross the boundary", counts
        )
    else:
        log.info("Glance: model calls %s, switched at sigma %.4f", counts, boundary.threshold)


def report_unused(names: Sequence[str], targets: int) -> None:
    """Warn of layers that an adapter changes and the model never called."""
    if names:
        log.warning(
            "Glance: %d of %d layers with an adapter were never called in this run, so they had no effect; the first "
            "is %s",
            len(names),
            targets,
            names[0],
        )
