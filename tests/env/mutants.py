"""Change one thing at a time in the files of pyproject.toml's [tool.mutmut], and count the changes that tests notice.

Exit with 1 if the tests of a module notice less than 85 % of its mutants. The mutants stay in mutants/, and
`mutmut show NAME` prints one.
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
MUTMUT = [sys.executable, "-m", "mutmut"]


def main() -> int:
    """Run mutmut, print one line per module, and return the exit status."""
    shutil.rmtree(ROOT / "mutants", ignore_errors=True)
    run = subprocess.run([*MUTMUT, "run", "--max-children", "1"], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    results = subprocess.run(
        [*MUTMUT, "results", "--all", "true"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    counts = by_module(results.stdout)
    for module, found in counts.items():
        left = f"left: {found['survived']} survive, {found['no tests']} are not run by any test"
        print(f"{module:36s} {sum(found.values()):5d} mutants, {killed(found):.1%} killed; {left}")
    enough = bool(counts) and all(killed(found) >= LEAST for found in counts.values())
    return 0 if run.returncode == 0 and enough else 1


def by_module(results: str) -> dict[str, Counter[str]]:
    """Count each module's mutants by status, from mutmut's lines `package.module.x_function__mutmut_7: survived`."""
    counts: dict[str, Counter[str]] = {}
    for line in results.splitlines():
        name, _, status = line.strip().partition(": ")
        if "__mutmut_" in name:
            counts.setdefault(name.rsplit(".", 1)[0], Counter())[status] += 1
    return counts


def killed(found: Counter[str]) -> float:
    """Return the share of mutants that tests notice."""
    return sum(found[status] for status in NOTICED) / sum(found.values())


if __name__ == "__main__":
    sys.exit(main())
