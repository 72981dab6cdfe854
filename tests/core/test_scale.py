"""docs/scale/: what a line of the file becomes in the graph. That servers take and finish it is tested with a real one, in tests/host."""

import json

import pytest
from scale_scripts import SCRIPTS, script

GRAPH = json.loads((SCRIPTS / "glance_tiny_api.json").read_text(encoding="utf-8"))


def test_every_line_is_a_graph_with_its_columns_and_its_number_in_place():
    made = list(script("pictures_on_servers").graphs(GRAPH, ["a red star\t2", "a blue ring\t3"], ["6.prompt", "3.cfg"], "3.seed"))
    assert [number for number, _ in made] == [0, 1]
    assert [(graph["6"]["inputs"]["prompt"], graph["3"]["inputs"]["cfg"], graph["3"]["inputs"]["seed"]) for _, graph in made] == [
        ("a red star", 2.0, 0),
        ("a blue ring", 3.0, 1),
    ]
    assert GRAPH["3"]["inputs"]["cfg"] == 4.0 and made[0][1]["9"] == GRAPH["9"]


def test_a_line_of_too_many_columns_is_refused_by_its_number():
    with pytest.raises(ValueError, match="line 2 has 2 columns for 1 --into"):
        list(script("pictures_on_servers").graphs(GRAPH, ["a", "b\tc"], ["6.prompt"], None))
