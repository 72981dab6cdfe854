"""The teacher's sigmas: N + 1 falling noise levels, the last 0. For flow models sigma 1 is pure noise.

Code counts teacher steps from 0. Everything that a person reads or types counts them from 1.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from ..errors import ScheduleError
from ..models import RULES
from ..sigma_rules import DynamicShift, EmpiricalShift, LinearQuadratic, LogitNormal, SigmaRule

TEACHER_STEPS = 50
MOST_TEACHER_STEPS = 10_000
# Sigma rules beside those of models.py: a given shift, the host's own sigmas, a list that the user wired.
FIXED_SHIFT, HOST, LISTED = "shift", "model", "list"
SIGMA_RULES = (*RULES, FIXED_SHIFT, HOST, LISTED)
_MOST_TOKENS = 10**9
_MOST_MU = 30  # above it, neighbouring sigmas differ by less than float64 can tell


def image_tokens(width: int, height: int, pixels_per_token: int = 16) -> int:
    """Return how many tokens an image of this size in pixels has; what does not fill a token is cut off."""
    tokens = (width // pixels_per_token) * (height // pixels_per_token)
    if width < 1 or height < 1 or tokens < 1:
        side = f"{pixels_per_token}x{pixels_per_token}"
        raise ScheduleError(f"an image of {width}x{height} pixels is smaller than one token; use at least {side}")
    return tokens


def rule_sigmas(rule: SigmaRule, steps: int, tokens: int) -> tuple[float, ...]:
    """Return the `steps` + 1 sigmas of a rule. Raises ScheduleError if there are too many tokens."""
    _check_steps(steps)
    tokens = min(tokens, _MOST_TOKENS)
    if isinstance(rule, DynamicShift):
        (t0, t1), (m0, m1) = rule.tokens, rule.mu
        mu = m0 + (tokens - t0) * (m1 - m0) / (t1 - t0)
        return shifted_sigmas(steps, _shift(mu, rule.name, tokens), rule.terminal)
    if isinstance(rule, EmpiricalShift):
        return shifted_sigmas(steps, _shift(_empirical_mu(rule, steps, tokens), rule.name, tokens))
    if isinstance(rule, LogitNormal):
        return _logit_normal_sigmas(rule, steps, tokens)
    return _linear_quadratic_sigmas(rule, steps)


def _shift(mu: float, name: str, tokens: int) -> float:
    if mu > _MOST_MU:
        raise ScheduleError(f"{tokens} tokens are too many for the {name} sigmas; make the image smaller")
    return math.exp(mu)


def _empirical_mu(rule: EmpiricalShift, steps: int, tokens: int) -> float:
    """Return mu on the line between both. Source: `compute_empirical_mu` of diffusers and of ComfyUI."""
    few, many = (line.slope * tokens + line.offset for line in (rule.few, rule.many))
    if tokens > rule.most_tokens:
        return many
    return many + (many - few) / (rule.many.steps - rule.few.steps) * (steps - rule.many.steps)


def _logit_normal_sigmas(rule: LogitNormal, steps: int, tokens: int) -> tuple[float, ...]:
    """Return the sigmas whose logits are normal quantiles. Source: comfy_extras of ComfyUI 0.33."""
    mean, normal = rule.mean + 0.5 * math.log(tokens / rule.tokens), statistics.NormalDist()
    logits = [mean + rule.spread * normal.inv_cdf(1 - i / steps) for i in range(1, steps)]
    return (rule.highest, *(min(rule.highest, 1 / (1 + math.exp(-logit))) for logit in logits), 0.0)


def _linear_quadratic_sigmas(rule: LinearQuadratic, steps: int) -> tuple[float, ...]:
    """Return 1 - threshold * i / half for the first half of the steps, then a parabola of the same slope to 0.

    Source: `linear_quadratic_schedule` of diffusers and of ComfyUI.
    """
    half = steps // 2
    if half == 0:
        return (1.0, 0.0)
    threshold, rest, slope = rule.threshold, steps - half, rule.threshold / half
    bend = (1 - threshold - slope * rest) / rest**2
    linear = [1 - slope * i for i in range(half)]
    return (*linear, *(1 - threshold - slope * i - bend * i**2 for i in range(rest)), 0.0)


def shifted_sigmas(steps: int, shift: float, terminal: float | None = None) -> tuple[float, ...]:
    """Return sigma = shift / (shift + 1/s - 1) for `steps` even values s from 1 to 1/steps, and a final 0.

    Args:
        terminal: rescale 1 - sigma so that the last sigma before 0 is this.

    Source: FlowMatchEulerDiscreteScheduler of diffusers.
    """
    _check_steps(steps)
    if not (math.isfinite(shift) and shift > 0):
        raise ScheduleError(f"shift is {shift}; it must be a positive number")
    uniform = [1 - i * (1 - 1 / steps) / (steps - 1) for i in range(steps)] if steps > 1 else [1.0]
    sigmas = [shift / (shift + (1 / s - 1)) for s in uniform]
    if terminal is not None and steps > 1:
        stretch = (1 - terminal) / (1 - sigmas[-1])
        sigmas = [1 - (1 - sigma) * stretch for sigma in sigmas]
    return (*sigmas, 0.0)


def _check_steps(steps: int) -> None:
    if not 1 <= steps <= MOST_TEACHER_STEPS:
        raise ScheduleError(f"the teacher has {steps} steps; choose 1 to {MOST_TEACHER_STEPS}")


def teacher_sigmas(
    rule: str,
    steps: int = TEACHER_STEPS,
    *,
    tokens: int | None = None,
    shift: float | None = None,
    sigmas: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """Return the teacher's `steps` + 1 sigmas.

    Args:
        rule: a name in models.RULES (needs `tokens`), `shift` (needs `shift`), `model` or `list` (need `sigmas`).
        sigmas: the host's own or the list, ending with 0.

    Raises:
        ScheduleError: for an unknown rule, a missing argument, or sigmas that do not fall to 0.
    """
    if rule in RULES:
        if tokens is None or tokens < 1:
            raise ScheduleError(f"the {rule} sigmas depend on the image size: tokens must be at least 1, got {tokens}")
        return rule_sigmas(RULES[rule], steps, tokens)
    if rule == FIXED_SHIFT:
        if shift is None:
            raise ScheduleError("the shift rule needs a shift, for example 3.0")
        return shifted_sigmas(steps, shift)
    if rule in (HOST, LISTED):
        if sigmas is None:
            missing = "the model's own sigmas, and no model is loaded here" if rule == HOST else "the list itself"
            raise ScheduleError(f"the {rule} rule needs {missing}")
        if len(sigmas) != steps + 1:
            raise ScheduleError(
                f"the {rule} gave {len(sigmas) - 1} teacher steps instead of {steps}; choose another number"
            )
        return check_falling(sigmas)
    raise ScheduleError(f"{rule!r} is not a sigma rule; choose one of {', '.join(SIGMA_RULES)}")


def check_falling(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Return the sigmas as floats. Raises ScheduleError unless they are finite, strictly falling, and end with 0."""
    values = tuple(float(s) for s in sigmas)
    if len(values) < 2:
        raise ScheduleError(f"a list of sigmas needs at least one sigma and a final 0, got {list(values)}")
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise ScheduleError(f"sigma {i + 1} is {value}; every sigma must be a finite number")
    for i, (a, b) in enumerate(itertools.pairwise(values)):
        if b >= a:
            raise ScheduleError(f"sigmas must fall, but sigma {i + 2} is {b:.6g} after {a:.6g}")
    if values[-1] != 0:
        raise ScheduleError(f"sigmas must end with 0, but the last is {values[-1]:.6g}")
    return values
