"""Write docs/models.md from what `make sweep` showed, as pytest wrote it down in sweep.xml.

    .venv/bin/python tests/host/write_models_page.py

A cell says yes only if every test of that model passed. tests/host/test_models_page.py fails if the page lacks a model.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

import comfyui

RESULTS, PAGE = comfyui.PACK / "sweep.xml", comfyui.PACK / "docs" / "models.md"
# Column -> the tests whose first parameter is the model, in words.
COLUMNS = {
    "sampling": (
        "test_pair_acts_as_merged_models_and_leaves_the_bare_model_as_it_was",
        "test_euler_equals_two_chained_samplers_with_merged_loras_at_every_switch_step",
    ),
    "full run": (
        "test_teacher_of_every_model_ends_where_comfyuis_own_sampler_ends",
        "test_the_teacher_ends_where_comfyuis_own_sampler_ends",
    ),
    "gradients": ("test_gradients_are_those_of_central_differences",),
    "training": ("test_the_trained_function_is_the_loaded_function",),
    "trained files": ("test_a_trained_pair_loads_whole_in_comfyuis_own_loader",),
    "other nodes": ("test_previews_comparison_and_calibration_run",),
}
_OF_TRAINING = {"gradients", "training", "trained files", "other nodes"}
HEAD = """\
# Models

What `make sweep` shows on tiny models of ComfyUI {version}'s own classes, on a CPU, in float32: {count} models, {date},
"{summary}". No full-size model was run.

- **sampling**: a pair gives what two samplers in a row with merged LoRAs give, below 1e-5, with and without guidance.
  The bare model has the same bits afterwards.
- **full run**: the pack's full run ends where ComfyUI's own Euler ends, below 1e-5.
- **gradients**: backward equals central differences, to 1e-3, with and without checkpointing.
- **training**: the function that was trained, the saved pair in a sampler, and ComfyUI's own merge agree, below 1e-5.
- **trained files**: a pair that was trained here loads in ComfyUI's own LoRA loader without losing a key.
- **other nodes**: training with previews, Glance Compare and Calibrate Glance run.
- **noise levels**: what *schedule* `auto` takes. `model` means the model's own, as ComfyUI's scheduler `simple` gives
  them.

A dash means that there is no such test. Bases stored in fp8, mxfp8, nvfp4, INT8 and GGUF have tests of their own
(`tests/host/test_quantised_bases.py`, `test_gguf_bases.py`).

"""


def names_of(page: str) -> list[str]:
    """Return the models of the page's table."""
    return re.findall(r"^\| `([^`]+)` \|", page, re.M)


def outcomes(results: Path) -> dict[tuple[str, str], list[bool]]:
    """Return (test, first parameter) -> whether each case passed."""
    found = defaultdict(list)
    for case in ElementTree.parse(results).iter("testcase"):
        test, _, parameters = case.get("name", "").partition("[")
        if case.find("skipped") is None:
            failed = case.find("failure") is not None or case.find("error") is not None
            found[test, parameters.rstrip("]")].append(not failed)
    return found


def cell(found: dict[tuple[str, str], list[bool]], tests: tuple[str, ...], name: str) -> str:
    """Return yes, NO or a dash. A parameter may follow the model's name."""
    cases = [
        passed
        for (test, parameters), each in found.items()
        if test in tests and (parameters == name or (parameters.startswith(f"{name}-") and _is_rest(parameters, name)))
        for passed in each
    ]
    return "-" if not cases else "yes" if all(cases) else "NO"


def _is_rest(parameters: str, name: str) -> bool:
    """Return whether what follows the name is another parameter, not the rest of a longer name."""
    return re.fullmatch(r"(-(\d+\.\d+|True|False))+", parameters[len(name) :]) is not None


def page(results: Path) -> str:
    """Return the page."""
    import comfyui_version
    import tiny_models
    from architectures import ARCHITECTURES
    from test_training_architectures import NEXT_SIGMA, NOT_DIFFERENTIABLE

    rule_of = comfyui.pack_module("nodes.host.model_sigmas").rule_of
    found, suite = outcomes(results), ElementTree.parse(results).getroot().find("testsuite")
    names = [*tiny_models.MODELS, *ARCHITECTURES]
    lines = [f"| model | ComfyUI's class | {' | '.join(COLUMNS)} | noise levels |", "|---" * (len(COLUMNS) + 3) + "|"]
    for name in names:
        model = tiny_models.build(name)
        refused = _OF_TRAINING if name in (*NEXT_SIGMA, *NOT_DIFFERENTIABLE) else set()
        refused = refused | {"full run"} if name in NEXT_SIGMA else refused
        cells = ["refused" if column in refused else cell(found, tests, name) for column, tests in COLUMNS.items()]
        lines.append(f"| `{name}` | {type(model.model).__name__} | {' | '.join(cells)} | {rule_of(model)} |")
    failed = int(suite.get("failures")) + int(suite.get("errors"))
    passed = int(suite.get("tests")) - failed - int(suite.get("skipped"))
    summary = f"{passed} passed, {failed} failed, {suite.get('skipped')} skipped"
    head = HEAD.format(
        version=comfyui_version.__version__, count=len(names), date=suite.get("timestamp")[:10], summary=summary
    )
    return head + "\n".join(lines) + "\n\n" + _refusals([*NEXT_SIGMA, *NOT_DIFFERENTIABLE])


def _refusals(names: list[str]) -> str:
    """Return what training says to the models that it refuses, asked now."""
    import tiny_models
    from test_preflight_gradients import tried

    lines = ["## What training refuses, and why", ""]
    for name in names:
        try:
            tried(tiny_models.build(name), name, checkpointing=False)
        except ValueError as error:
            lines.append(f"- `{name}`: {error}")
        else:
            sys.exit(f"{name} was not refused")
    return "\n".join(lines) + "\n"


def main() -> None:
    if not RESULTS.exists():
        sys.exit("run make sweep first")
    comfyui.boot_or_exit()
    sys.path += [str(Path(__file__).parent), str(comfyui.PACK / "tests" / "shared")]
    comfyui.load_pack()
    import torch

    with torch.inference_mode():
        PAGE.write_text(page(RESULTS), encoding="utf-8")


if __name__ == "__main__":
    main()
