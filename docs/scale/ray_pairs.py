"""Many pairs on a Ray cluster: every line of a file is the options of one `python -m glance_core train`, and runs as one Ray task.

    pip install "ray==2.60.0"                            (beside torch; it brings none of its own)
    python docs/scale/ray_pairs.py pairs.txt --out pairs              on this machine, as many at once as it has cores for
    python docs/scale/ray_pairs.py pairs.txt --out /shared/pairs --address auto --gpus 1

Ray places the tasks and starts one again whose worker or machine died; the training itself goes on from its last checkpoint in --out, which
therefore has to be a folder that every machine sees. A line is, for example: --name cats --prompts cats.txt --seed 1
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
    """The JSON that the training prints last. Raises with what it said where it fails."""
    environment = os.environ | {"PYTHONPATH": str(PACK), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "glance_core", "train", "--json", "--out", out, *shlex.split(line)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{line}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip().splitlines()[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("pairs", type=Path, help="a text file, one pair's options a line")
    parser.add_argument("--out", type=Path, default=Path("glance_trained"), help="a folder that every machine sees")
    parser.add_argument("--address", help="of a running cluster, or auto (default: one of this machine alone)")
    parser.add_argument("--cpus", type=int, default=1, help="cores for each pair (default 1)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs for each pair (default 0)")
    options = parser.parse_args()
    lines = [line for line in options.pairs.read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#")]
    ray.init(address=options.address, include_dashboard=False, log_to_driver=False)
    task = train.options(num_cpus=options.cpus, num_gpus=options.gpus, max_retries=3)
    waiting = {task.remote(line, str(options.out.resolve()), options.cpus): line for line in lines}
    failed = 0
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        line = waiting.pop(done)
        try:
            told = json.loads(ray.get(done))
            print(f"{line}: {told['verdict']} ({told['seconds']:.0f} s)\n  " + "\n  ".join(told["pair"]), flush=True)
        except ray.exceptions.RayError as error:
            failed += 1
            print(f"error: {str(getattr(error, 'cause', error)).splitlines()[-1]}", file=sys.stderr, flush=True)
    print(f"{len(lines) - failed} of {len(lines)} pairs trained", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
