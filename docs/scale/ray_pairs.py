"""Train many pairs on a Ray cluster. Each line of a file holds the options of one `python -m glance_core train`.

    pip install "ray==2.60.0"                            (beside torch; it brings none of its own)
    python docs/scale/ray_pairs.py pairs.txt --out pairs              on this machine, one pair per core
    python docs/scale/ray_pairs.py pairs.txt --out /shared/pairs --address auto --gpus 1

A line is, for example: --name cats --prompts cats.txt --seed 1

Ray places the tasks, and restarts a task whose worker or machine died. The training run then resumes from its last
checkpoint in --out, so every machine must see that folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import ray

PACK = Path(__file__).resolve().parents[2]


@ray.remote
def train(line: str, out: str, threads: int) -> str:
    """Return the JSON that the training command prints last.

    Raises:
        RuntimeError: with the command's error, if it fails.
    """
    environment = os.environ | {"PYTHONPATH": str(PACK), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "glance_core", "train", "--json", "--out", out, *shlex.split(line)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{line}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip().splitlines()[-1]


def main() -> int:
    """Train all pairs, and return the exit status."""
    options = _parser().parse_args()
    text = options.pairs.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    ray.init(address=options.address, include_dashboard=False, log_to_driver=False)
    task = train.options(num_cpus=options.cpus, num_gpus=options.gpus, max_retries=3)
    waiting = {task.remote(line, str(options.out.resolve()), options.cpus): line for line in lines}
    failed = 0
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        line = waiting.pop(done)
        try:
            found = json.loads(ray.get(done))
            files = "\n  ".join(found["pair"])
            print(f"{line}: {found['comparison']} ({found['seconds']:.0f} s)\n  {files}", flush=True)
        except ray.exceptions.RayError as error:
            failed += 1
            print(f"error: {str(getattr(error, 'cause', error)).splitlines()[-1]}", file=sys.stderr, flush=True)
    print(f"{len(lines) - failed} of {len(lines)} pairs trained", flush=True)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("pairs", type=Path, help="a text file with one pair's options per line")
    add("--out", type=Path, default=Path("glance_trained"), help="a folder that every machine sees")
    add("--address", help="of a running cluster, or auto (default: a cluster of this machine alone)")
    add("--cpus", type=int, default=1, help="cores for each pair (default 1)")
    add("--gpus", type=float, default=0, help="GPUs for each pair (default 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
