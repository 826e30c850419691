"""The workflow JSON that the browser saves, as what the host executes."""

SEED_CONTROLS = {"fixed", "increment", "decrement", "randomize"}
DRAWN_ONLY = {"Note", "MarkdownNote"}


def to_api(workflow: dict) -> dict:
    """The browser's workflow JSON → the API's {node id: {class_type, inputs}}. An API-form file passes as it is."""
    if "nodes" not in workflow:
        return workflow
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    return {
        str(node["id"]): {
            "class_type": node["type"],
            "inputs": widget_values(node) | linked_inputs(node, sources),
            "_meta": {"title": node.get("title", node["type"])},
        }
        for node in workflow["nodes"]
        if node["type"] not in DRAWN_ONLY
    }


def widget_values(node: dict) -> dict:
    """The widgets' values by name; the browser stores them in a row, with a control behind each seed."""
    values = list(node.get("widgets_values", []))
    found = {}
    for slot in node.get("inputs", []):
        if "widget" not in slot:
            continue
        name = slot["widget"]["name"]
        found[name] = values.pop(0)
        if name in ("seed", "noise_seed") and values and values[0] in SEED_CONTROLS:
            values.pop(0)
    return found


def linked_inputs(node: dict, sources: dict) -> dict:
    return {slot["name"]: sources[slot["link"]] for slot in node.get("inputs", []) if slot.get("link") is not None}


def set_input(prompt: dict, assignment: str) -> None:
    """`TITLE.input=value` or `ID.input=value`: changes one widget of an API prompt. ValueError names what there is."""
    target, _, value = assignment.partition("=")
    node_name, _, name = target.rpartition(".")
    matches = [n for key, n in prompt.items() if node_name in (key, n["_meta"]["title"], n["class_type"])]
    if len(matches) != 1 or name not in matches[0]["inputs"]:
        known = [
            f"{n['_meta']['title']}.{i}"
            for n in prompt.values()
            for i, v in n["inputs"].items()
            if not isinstance(v, list)
        ]
        raise ValueError(f'--set {assignment}: there is no single "{target}" here. There are: {", ".join(known)}.')
    kind = type(matches[0]["inputs"][name])
    matches[0]["inputs"][name] = value.lower() in ("1", "true", "yes") if kind is bool else kind(value)
