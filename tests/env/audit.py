"""Ask PyPI's vulnerability service about every package in constraints.txt.

Exit codes: 0, the service answered for every package and knows no vulnerability; 1, it knows one; 2, it did not
answer for every package. (pip-audit alone exits with 0 if it could look nothing up.)

pip-audit asks for the page of each version. Some mirrors of PyPI only have one page per package, which covers the
newest version. This script asks for that page if pip-audit skipped a package.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from dependencies import pinned

CONSTRAINTS = Path(__file__).resolve().parent / "constraints.txt"


def main() -> int:
    command = [
        *(sys.executable, "-m", "pip_audit", "-r", str(CONSTRAINTS)),
        *("--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        print(
            f"error: pip-audit failed: {(done.stderr.strip().splitlines() or ['it printed nothing'])[-1]}",
            file=sys.stderr,
        )
        return 2
    versions = {each.name: str(each.specifier).removeprefix("==") for each in pinned(CONSTRAINTS)}
    answers = [
        each if "vulns" in each else of_newest(each, versions[each["name"]], page(each["name"]))
        for each in report["dependencies"]
    ]
    code, message = summarize(answers)
    print(message, file=sys.stderr if code else sys.stdout)
    return code


def page(name: str) -> dict[str, Any]:
    """Return PyPI's page of a package (https://docs.pypi.org/api/json), or {} if it cannot be read."""
    try:
        with urllib.request.urlopen(f"https://pypi.org/pypi/{name}/json", timeout=30) as answer:
            return dict(json.load(answer))
    except (OSError, ValueError):
        return {}


def of_newest(package: dict[str, Any], version: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return pip-audit's entry for a package that it skipped, made from PyPI's page of the newest version.

    If our version is not the newest, return the package unchanged.
    """
    if "vulnerabilities" not in found or found["info"]["version"] != version:
        return package
    known = [each for each in found["vulnerabilities"] if not each.get("withdrawn")]
    return {"name": package["name"], "version": version, "vulns": known}


def summarize(packages: list[dict[str, Any]]) -> tuple[int, str]:
    """Return the exit code and the message for the packages of a pip-audit report."""
    bad = [
        f"{each['name']} {each['version']}: {', '.join(found['id'] for found in each['vulns'])}"
        for each in packages
        if each.get("vulns")
    ]
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    if bad:
        return 1, "\n".join(["error: known vulnerabilities:", *bad])
    if unknown or not packages:
        return 2, (
            f"error: the vulnerability service answered for {len(packages) - len(unknown)} of {len(packages)} "
            f"packages. It did not answer for {', '.join(unknown[:8])}{', ..' if len(unknown) > 8 else ''}. Run this "
            "on a machine that can reach pypi.org."
        )
    return 0, f"no known vulnerability in {len(packages)} packages"


if __name__ == "__main__":
    sys.exit(main())
