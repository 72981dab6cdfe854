"""The workflows a user can open from the templates browser fit the nodes of the host and of this pack."""

import asyncio
import json

import comfyui
import pytest

WORKFLOWS = sorted((comfyui.PACK / "workflows").glob("*.json"))
FRONTEND_ONLY = {"MarkdownNote", "Note"}  # drawn by the browser, unknown to the server
WIDGETS = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool, "COMBO": str}
MODEL_FILES = (".safetensors", ".gguf")  # which of them a user has is not ours to know


@pytest.fixture(scope="module")
def host_nodes(node_classes):
    import nodes

    if "FluxGuidance" not in nodes.NODE_CLASS_MAPPINGS:
        asyncio.run(nodes.init_builtin_extra_nodes())
    return node_classes


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def workflow(path):
    return json.loads(path.read_text(encoding="utf-8"))


def _run_by_host(workflow):
    return [node for node in workflow["nodes"] if node["type"] not in FRONTEND_ONLY]


def _inputs(node_class):
    """Name -> (type, options) in schema order; a list of choices in place of a type, the old way to say COMBO, is made one."""
    schema = node_class.INPUT_TYPES()
    declared = {**schema.get("required", {}), **schema.get("optional", {})}
    for name, (kind, *rest) in declared.items():
        options = rest[0] if rest else {}
        yield name, *(("COMBO", {**options, "options": kind}) if isinstance(kind, list) else (kind, options))


def _widgets(node_class):
    """Name, type and options of each value the browser saves for a node, in its order."""
    for name, kind, options in _inputs(node_class):
        if kind in WIDGETS:
            yield name, kind, options
            if options.get("control_after_generate"):
                yield "control_after_generate", "COMBO", {"options": ["fixed", "increment", "decrement", "randomize"]}


def test_there_are_workflows():
    assert WORKFLOWS


def test_a_workflow_has_a_picture_of_the_same_name(path):
    assert path.with_suffix(".jpg").read_bytes().startswith(b"\xff\xd8\xff")


def test_every_node_of_a_workflow_exists_in_the_host(workflow, host_nodes):
    assert {node["type"] for node in _run_by_host(workflow)} <= host_nodes.keys()


def test_node_and_link_ids_are_unique_and_counted(workflow):
    for items, last in (([n["id"] for n in workflow["nodes"]], "last_node_id"), ([link[0] for link in workflow["links"]], "last_link_id")):
        assert len(items) == len(set(items)) and max(items) == workflow[last]


def test_both_ends_of_every_link_know_it_and_every_known_link_exists(workflow):
    ends = {(slot["link"], node["id"], i, "in") for node in workflow["nodes"] for i, slot in enumerate(node["inputs"])}
    ends |= {
        (link, node["id"], i, "out") for node in workflow["nodes"] for i, slot in enumerate(node["outputs"]) for link in slot["links"] or ()
    }
    assert ends == {
        end
        for link, source, out_slot, target, in_slot, _ in workflow["links"]
        for end in ((link, source, out_slot, "out"), (link, target, in_slot, "in"))
    }


def test_every_link_joins_slots_whose_types_fit_by_the_hosts_schemas(workflow, host_nodes):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for _, source, out_slot, target, in_slot, carried in workflow["links"]:
        given = host_nodes[nodes[source]["type"]].RETURN_TYPES[out_slot]
        taken = {name: kind for name, kind, _ in _inputs(host_nodes[nodes[target]["type"]])}[nodes[target]["inputs"][in_slot]["name"]]
        assert carried == given
        assert taken in (given, "*")


def test_every_input_without_a_widget_that_has_to_be_is_linked(workflow, host_nodes):
    for node in _run_by_host(workflow):
        linked = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
        sockets = {name for name, kind, _ in _inputs(host_nodes[node["type"]]) if kind not in WIDGETS}
        needed = sockets & set(host_nodes[node["type"]].INPUT_TYPES()["required"])
        assert needed <= linked <= sockets, node["type"]


def test_widget_values_fit_the_schemas_in_number_order_and_range(workflow, host_nodes):
    for node in _run_by_host(workflow):
        widgets = list(_widgets(host_nodes[node["type"]]))
        assert len(node["widgets_values"]) == len(widgets), node["type"]
        for value, (name, kind, options) in zip(node["widgets_values"], widgets, strict=True):
            where = f"{node['type']}.{name} = {value!r}"
            assert isinstance(value, WIDGETS[kind]), where
            if kind == "COMBO":
                assert value in options["options"] or value.endswith(MODEL_FILES), where
            elif kind in ("INT", "FLOAT"):
                assert options.get("min", value) <= value <= options.get("max", value), where
