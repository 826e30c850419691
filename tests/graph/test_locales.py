"""The translations in locales/ follow the schemas: a node that changes its inputs changes its translation too."""

import json
import re
from pathlib import Path

import pytest
from comfy_api.latest import io

from vico_spin.scripts.host import PACK_NAME

ROOT = Path(__file__).resolve().parent.parent.parent
ZH = json.loads((ROOT / "locales/zh/nodeDefs.json").read_text(encoding="utf-8"))
CHINESE = re.compile(r"[\u4e00-\u9fff]")
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
SYNTAX = set("@{}|")  # the frontend's i18n reads these as its own: only what is before a | would be shown


@pytest.fixture
def schemas(host):
    """{node id: schema} of this pack's nodes."""
    module = f"custom_nodes.{PACK_NAME}"
    ours = (node for node in host.node_classes.values() if getattr(node, "RELATIVE_PYTHON_MODULE", None) == module)
    return {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in ours)}


def input_slots(schema):
    """(key, input) of every input, those of a dynamic combo's options too.

    The frontend shows what is nested as the widget "combo.input" and looks it up with the dot as an underscore.
    """
    for slot in schema.inputs:
        yield slot.id, slot
        if isinstance(slot, io.DynamicCombo.Input):
            yield from ((f"{slot.id}_{nested.id}", nested) for option in slot.options for nested in option.inputs)


def slots(schema) -> dict:
    """A node's inputs and outputs under the keys by which the frontend looks them up; options may share one."""
    found = {}
    for key, slot in input_slots(schema):
        found.setdefault(("inputs", key), []).append(slot)
    return found | {("outputs", str(index)): [output] for index, output in enumerate(schema.outputs)}


def texts(schema) -> dict:
    """What a user reads about a node and its slots, by place; where slots share a key, the text must serve them all."""
    told = {(*key, "tooltip"): [slot.tooltip for slot in found if slot.tooltip] for key, found in slots(schema).items()}
    return {("description",): schema.description} | {key: "\n".join(all_of) for key, all_of in told.items() if all_of}


def translated(node_id: str) -> dict:
    """The file's texts of one node, under the keys of `texts`."""
    node = ZH[node_id]
    kinds = (("inputs", node.get("inputs", {})), ("outputs", node["outputs"]))
    tooltips = {(kind, key, "tooltip"): slot["tooltip"] for kind, found in kinds for key, slot in found.items()}
    return {("description",): node["description"]} | tooltips


def test_every_node_and_slot_is_translated_and_no_other(schemas):
    assert ZH.keys() == schemas.keys()
    for node_id, schema in schemas.items():
        keys = {(kind, key) for kind in ("inputs", "outputs") for key in ZH[node_id].get(kind, {})}
        assert keys == slots(schema).keys(), node_id
        assert ZH[node_id]["display_name"], node_id
        assert all(slot["name"] for slot in ZH[node_id].get("inputs", {}).values()), node_id


def test_every_text_is_chinese_and_keeps_its_numbers(schemas):
    for node_id, schema in schemas.items():
        english, chinese = texts(schema), translated(node_id)
        assert english.keys() == chinese.keys(), node_id
        for key, text in chinese.items():
            assert CHINESE.search(text), (node_id, key)
            assert set(NUMBER.findall(english[key])) == set(NUMBER.findall(text)), (node_id, key)


def test_named_outputs_have_a_name(schemas):
    """An output that is called like its type (MODEL, IMAGE) is translated by the frontend itself."""
    for node_id, schema in schemas.items():
        for index, output in enumerate(schema.outputs):
            named = output.display_name not in (None, output.io_type)
            assert ("name" in ZH[node_id]["outputs"][str(index)]) == named, (node_id, index)


def strings(entry: dict):
    """All strings in a nested entry."""
    for value in entry.values():
        yield from strings(value) if isinstance(value, dict) else [value]


def test_no_text_is_read_as_i18n_syntax():
    assert not [text for text in strings(ZH) if SYNTAX & set(text)]


def test_the_host_serves_it_with_every_category(schemas):
    from app.custom_node_manager import CustomNodeManager

    served = CustomNodeManager().build_translations()["zh"]
    assert served["nodeDefs"] == ZH
    segments = {segment for schema in schemas.values() for segment in schema.category.split("/")}
    assert served["nodeCategories"].keys() == segments
