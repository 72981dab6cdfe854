"""The same seed gives the same bits on a CPU in two fresh processes.

They sample and train, and the second resumes a training run of the first.
"""

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

HERE = Path(__file__).parent
FRESH = """
import pathlib, sys, comfyui
comfyui.boot(comfyui.find())
comfyui.load_pack()
import fresh
fresh.save(pathlib.Path(sys.argv[1]), sys.argv[2])
"""


def test_two_fresh_processes_sample_train_and_resume_to_the_same_bits(tmp_path):
    found = []
    for seed, moment in enumerate(("begin", "end")):  # the hash of a string, and so the order of a set, differs
        path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
        environment = os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": path}
        command = [sys.executable, "-c", FRESH, tmp_path, moment]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(load_file(tmp_path / f"{moment}.safetensors"))
    first, second = found
    for key, value in first.items():
        assert value.equal(second[key]), key
    assert any(key.startswith("picture_fast") for key in first) and not first["euler"].equal(first["euler_ancestral"])
    resumed = [key for key in second if key.startswith("broken")]
    assert len(resumed) > 20
    for key in resumed:
        assert second[key].equal(second[key.replace("broken", "whole")]), key
