"""Ask PyPI's vulnerability service about everything in constraints.txt. Ends with 0 only if every package was answered for and none is known bad.

pip-audit ends with 0 also where it could look nothing up; that is no clean bill, and is 2 here. 1: something is known.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    code, told = verdict(report["dependencies"])
    print(told, file=sys.stderr if code else sys.stdout)
    return code


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
            f"({', '.join(unknown[:3])}{', ..' if len(unknown) > 3 else ''}); run it where pypi.org can be reached"
        )
    return 0, f"no known vulnerability in {len(packages)} packages"


if __name__ == "__main__":
    sys.exit(main())
