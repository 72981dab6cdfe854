"""The workflows of the templates browser match their definitions, and fit the nodes of ComfyUI and of the pack."""

import itertools
import json
import re

import comfyui
import graphs
import pytest
from graphs import builder, schemas

WORKFLOWS = sorted((comfyui.PACK / "workflows").glob("*.json"))
BLOCKS = sorted((comfyui.PACK / "subgraphs").glob("*.json"))
MODEL_FILES = (".safetensors", ".gguf")  # we do not know which of them a user has
TITLE = 30  # pixels of a node's title, above its position


@pytest.fixture(scope="module")
def host_nodes():
    return comfyui.all_nodes()


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def workflow(path):
    return json.loads(path.read_text(encoding="utf-8"))


def _run_by_host(workflow):
    return [node for node in workflow["nodes"] if node["type"] not in schemas.FRONTEND_ONLY]


def _notes(workflow):
    return "\n".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] in schemas.FRONTEND_ONLY)


def _overlap(one, other):
    """Return whether two boxes (left, top, right, bottom) overlap."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_every_workflow_and_block_matches_its_definition(host_nodes):
    made = graphs.files(host_nodes)
    found = {f"{file.parent.name}/{file.name}": file.read_text(encoding="utf-8") for file in (*WORKFLOWS, *BLOCKS)}
    assert found.keys() == made.keys()
    assert [place for place in made if made[place] != found[place]] == [], "run tests/host/write_workflows.py"


def test_wrong_inputs_in_a_definition_are_rejected(host_nodes):
    graph = builder.Graph("test", host_nodes)
    with pytest.raises(builder.BuildError, match="UNETLoader has no input unet_file"):
        graph.node("UNETLoader", (0, 0), (300, None), unet_name="a.safetensors", unet_file="b")
    with pytest.raises(builder.BuildError, match=r"UNETLoader\.unet_name depends on the files that a user has"):
        graph.node("UNETLoader", (0, 0), (300, None))
    vae = graph.node("VAELoader", (0, 0), (300, None), vae_name="a.safetensors")
    with pytest.raises(builder.BuildError, match=r"VAEDecode\.samples takes LATENT, not VAE"):
        graph.node("VAEDecode", (0, 0), (300, None), samples=vae, vae=vae)


def test_workflows_is_the_only_folder_with_a_name_for_templates():
    """ComfyUI serves the first of these folders that exists, and ignores the others."""
    names = ("example_workflows", "example", "examples", "workflow", "workflows")
    assert [name for name in names if (comfyui.PACK / name).exists()] == ["workflows"]


def test_every_workflow_has_a_picture_of_the_same_name(path):
    picture = path.with_suffix(".jpg").read_bytes()
    assert picture.startswith(b"\xff\xd8\xff") and len(picture) < 250_000


def test_comfyui_has_every_node_of_a_workflow(workflow, host_nodes):
    assert {node["type"] for node in _run_by_host(workflow)} <= host_nodes.keys()


def test_node_and_link_ids_are_unique_and_the_last_is_stated(workflow):
    for items, last in (
        ([n["id"] for n in workflow["nodes"]], "last_node_id"),
        ([link[0] for link in workflow["links"]], "last_link_id"),
    ):
        assert len(items) == len(set(items)) and max(items) == workflow[last]


def test_no_two_workflows_share_an_id():
    ids = [json.loads(path.read_text(encoding="utf-8"))["id"] for path in WORKFLOWS]
    assert len(ids) == len(set(ids))


def test_links_and_the_slots_at_their_ends_agree(workflow):
    ends = {(slot["link"], node["id"], i, "in") for node in workflow["nodes"] for i, slot in enumerate(node["inputs"])}
    ends |= {
        (link, node["id"], i, "out")
        for node in workflow["nodes"]
        for i, slot in enumerate(node["outputs"])
        for link in slot["links"] or ()
    }
    assert ends == {
        end
        for link, source, out_slot, target, in_slot, _ in workflow["links"]
        for end in ((link, source, out_slot, "out"), (link, target, in_slot, "in"))
    }


def test_both_slots_of_a_link_have_the_types_of_the_schemas(workflow, host_nodes):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for _, source, out_slot, target, in_slot, carried in workflow["links"]:
        given = host_nodes[nodes[source]["type"]].RETURN_TYPES[out_slot]
        inputs = {each.name: each for each in schemas.inputs(host_nodes[nodes[target]["type"]])}
        assert carried == given
        assert inputs[nodes[target]["inputs"][in_slot]["name"]].takes(given)


def test_every_required_input_without_a_widget_is_linked(workflow, host_nodes):
    for node in _run_by_host(workflow):
        linked = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
        inputs = list(schemas.inputs(host_nodes[node["type"]]))
        needed = {each.name for each in inputs if each.required and not each.is_widget}
        assert needed <= linked <= {each.name for each in inputs}, node["type"]


def test_widget_values_fit_the_schemas(workflow, host_nodes):
    for node in _run_by_host(workflow):
        widgets = list(schemas.widgets(host_nodes[node["type"]]))
        assert len(node["widgets_values"]) == len(widgets), node["type"]
        for value, widget in zip(node["widgets_values"], widgets, strict=True):
            name, kind, options = widget.name, widget.widget_kind, widget.options
            where = f"{node['type']}.{name} = {value!r}"
            assert isinstance(value, schemas.WIDGETS[kind]), where
            if kind == "COMBO":
                assert (
                    value in options["options"]
                    or value.endswith(MODEL_FILES)
                    or (name == "image" and value == "example.png")
                ), where
            elif kind in ("INT", "FLOAT"):
                assert options.get("min", value) <= value <= options.get("max", value), where


def test_nodes_do_not_overlap_and_are_as_tall_as_their_rows(workflow, host_nodes):
    boxes = []
    for node in workflow["nodes"]:
        (left, top), (width, height) = node["pos"], node["size"]
        if node["type"] in host_nodes:
            height = max(height, schemas.least_height(host_nodes[node["type"]]))
        boxes.append((node, (left, top - TITLE, left + width, top + height)))
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        assert not _overlap(first, second), (one["type"], one["pos"], other["type"], other["pos"])


def test_groups_do_not_overlap_and_each_node_is_inside_one(workflow):
    frames = [
        (x, y, x + width, y + height) for x, y, width, height in (group["bounding"] for group in workflow["groups"])
    ]
    assert not any(_overlap(one, other) for one, other in itertools.combinations(frames, 2))
    for node in _run_by_host(workflow):
        (left, top), (width, height) = node["pos"], node["size"]
        inside = [
            f for f in frames if f[0] < left and f[1] < top - TITLE and left + width < f[2] and top + height < f[3]
        ]
        assert len(inside) == 1, node["type"]


def test_a_note_names_every_downloaded_file_with_folder_and_address(workflow):
    for node in _run_by_host(workflow):
        for model in node["properties"].get("models", []):
            assert model["name"] in node["widgets_values"] and model["url"].endswith("/" + model["name"])
            assert f"| `{model['directory']}` | [{model['name']}]({model['url']}) |" in _notes(workflow)


def test_file_names_without_an_address_belong_to_the_pack_or_are_called_placeholders(workflow):
    from glance_core import tiny

    own = {file.name for folder in (tiny.MODEL_FILE.parent, tiny.LORA_FOLDER) for file in folder.iterdir()}
    for node in _run_by_host(workflow):
        linked = {model["name"] for model in node["properties"].get("models", [])}
        named = {value for value in node["widgets_values"] if str(value).endswith(MODEL_FILES)}
        if named - linked - own:
            loads = {"LoadGlanceLoRA": "are placeholders", "LoadPhaseLoRA": "is a placeholder"}
            assert loads[node["type"]] in _notes(workflow)


def test_notes_name_only_workflows_that_exist(workflow):
    assert set(re.findall(r"\*\*(glance_\w+)\*\*", _notes(workflow))) <= graphs.WORKFLOWS.keys() | {"glance_tiny_flux"}


def _named_in(row):
    """Return the workflows that a row of the README names. `..` stands for the beginning of the last whole name."""
    whole = ""
    for name in re.findall(r"`((?:glance|\.\.)_\w+)`", row):
        if not name.startswith(".."):
            whole = name
        beginning = whole if name.startswith("..") else ""
        while beginning and name.replace("..", beginning) not in graphs.WORKFLOWS:
            beginning = beginning.rpartition("_")[0]
        yield name.replace("..", beginning)


def test_the_readme_names_every_workflow_and_block():
    text = (comfyui.PACK / "README.md").read_text(encoding="utf-8").split("\n## Models\n")[1].split("\n## ")[0]
    assert sorted(name for row in text.splitlines() for name in _named_in(row)) == sorted(graphs.WORKFLOWS)
    assert set(re.findall(r"\*([^*]+)\*", text)) >= {path.stem for path in BLOCKS}


@pytest.mark.parametrize("path", BLOCKS, ids=lambda path: path.stem)
def test_the_inputs_and_outputs_of_a_block_are_linked_to_nodes_inside(path, host_nodes):
    saved = json.loads(path.read_text(encoding="utf-8"))
    (node,), (inside,) = saved["nodes"], saved["definitions"]["subgraphs"]
    assert node["type"] == inside["id"] and inside["name"] == node["title"] == path.stem
    nodes = {each["id"]: each for each in inside["nodes"]}
    for link in inside["links"]:
        source, target = nodes.get(link["origin_id"]), nodes.get(link["target_id"])
        given = source["outputs"][link["origin_slot"]] if source else inside["inputs"][link["origin_slot"]]
        taken = target["inputs"][link["target_slot"]] if target else inside["outputs"][link["target_slot"]]
        assert given["type"] == taken["type"] == link["type"]
        assert link["id"] in (given["links"] if source else given["linkIds"])
        assert link["id"] in ([taken["link"]] if target else taken["linkIds"])
    for each, outer in ((inside["inputs"], node["inputs"]), (inside["outputs"], node["outputs"])):
        assert [(slot["name"], slot["type"]) for slot in each] == [(slot["name"], slot["type"]) for slot in outer]
    for number, widget in node["properties"]["proxyWidgets"]:
        assert widget in {each.name for each in schemas.widgets(host_nodes[nodes[int(number)]["type"]])}
