"""Ask PyPI's vulnerability service about everything in constraints.txt. Ends with 0 only if every package was answered for and none is known bad.

pip-audit ends with 0 also where it could look nothing up; that is no clean bill, and is 2 here. 1: something is known. It asks for the page of
each version; some mirrors of PyPI have the page of each package alone, which says what is known of the newest version, and is asked then.
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
        sys.executable,
        "-m",
        "pip_audit",
        "-r",
        str(CONSTRAINTS),
        "--no-deps",
        "--disable-pip",
        "--progress-spinner",
        "off",
        "-f",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        print(f"error: pip-audit could not ask: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}", file=sys.stderr)
        return 2
    versions = {each.name: str(each.specifier).removeprefix("==") for each in pinned(CONSTRAINTS)}
    answered = [each if "vulns" in each else of_newest(each, versions[each["name"]], page(each["name"])) for each in report["dependencies"]]
    code, told = verdict(answered)
    print(told, file=sys.stderr if code else sys.stdout)
    return code


def page(name: str) -> dict[str, Any]:
    """PyPI's page of a package (https://docs.pypi.org/api/json); an empty one where it cannot be had."""
    try:
        with urllib.request.urlopen(f"https://pypi.org/pypi/{name}/json", timeout=30) as answer:
            return dict(json.load(answer))
    except (OSError, ValueError):
        return {}


def of_newest(package: dict[str, Any], version: str, told: dict[str, Any]) -> dict[str, Any]:
    """What pip-audit would have said of a package that it skipped, from PyPI's page, if ours is the newest version; else the package as it is."""
    if "vulnerabilities" not in told or told["info"]["version"] != version:
        return package
    known = [each for each in told["vulnerabilities"] if not each.get("withdrawn")]
    return {"name": package["name"], "version": version, "vulns": known}


def verdict(packages: list[dict[str, Any]]) -> tuple[int, str]:
    """The exit code, and what is said, of the packages of a report of pip-audit's."""
    bad = [
        f"{each['name']} {each['version']}: {', '.join(found['id'] for found in each['vulns'])}" for each in packages if each.get("vulns")
    ]
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    if bad:
        return 1, "\n".join(["error: known vulnerabilities:", *bad])
    if unknown or not packages:
        return 2, (
            f"error: the vulnerability service answered for {len(packages) - len(unknown)} of {len(packages)} packages, so nothing is known of the rest "
            f"({', '.join(unknown[:8])}{', ..' if len(unknown) > 8 else ''}); run it where pypi.org can be reached"
        )
    return 0, f"no known vulnerability in {len(packages)} packages"


if __name__ == "__main__":
    sys.exit(main())
