"""Change one thing at a time in the modules that pyproject.toml's [tool.mutmut] names, and count the changes that their tests notice.

Ends with 1 where a module has less than 85 % of its mutants killed. The mutants and what became of them stay in mutants/: `mutmut show NAME`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEAST = 0.85
NOTICED = ("killed", "timeout", "segfault", "suspicious")


def main() -> int:
    mutmut = [sys.executable, "-m", "mutmut"]
    shutil.rmtree(ROOT / "mutants", ignore_errors=True)
    ran = subprocess.run([*mutmut, "run", "--max-children", "1"], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    told = subprocess.run([*mutmut, "results", "--all", "true"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    counts = by_module(told)
    for module, found in counts.items():
        print(
            f"{module:32s} {sum(found.values()):5d} mutants, {killed(found):.1%} killed; left: {found['survived']} that survive, {found['no tests']} that nothing runs"
        )
    return 0 if ran.returncode == 0 and counts and all(killed(found) >= LEAST for found in counts.values()) else 1


def by_module(told: str) -> dict[str, Counter[str]]:
    """What became of the mutants of each module, from mutmut's lines `package.module.x_function__mutmut_7: survived`."""
    counts: dict[str, Counter[str]] = {}
    for line in told.splitlines():
        name, _, status = line.strip().partition(": ")
        if "__mutmut_" in name:
            counts.setdefault(name.rsplit(".", 1)[0], Counter())[status] += 1
    return counts


def killed(found: Counter[str]) -> float:
    return sum(found[status] for status in NOTICED) / sum(found.values())


if __name__ == "__main__":
    sys.exit(main())
