"""The workflow JSON that the browser saves, as what the host executes."""

SEED_CONTROLS = {"fixed", "increment", "decrement", "randomize"}
DRAWN_ONLY = {"Note", "MarkdownNote"}
SLIDER, UPLOAD_BUTTON = "IMAGECOMPARE", "IMAGEUPLOAD"  # widgets that save nothing, and that send nothing


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
        if slot["type"] == SLIDER:
            found[name] = {"__value__": ["", ""]}
            continue
        value = values.pop(0)
        if slot["type"] != UPLOAD_BUTTON:
            found[name] = value
        if name in ("seed", "noise_seed") and values and values[0] in SEED_CONTROLS:
            values.pop(0)
    return found


def linked_inputs(node: dict, sources: dict) -> dict:
    return {slot["name"]: sources[slot["link"]] for slot in node.get("inputs", []) if slot.get("link") is not None}


def set_input(prompt: dict, assignment: str) -> None:
    """`TITLE.input=value` or `ID.input=value`: changes one widget of an API prompt. ValueError names what there is."""
    target, _, value = assignment.partition("=")
    found = [
        (node, name) for key, node in prompt.items() for name in node["inputs"] if target in names(key, node, name)
    ]
    if len(found) != 1:
        known = [
            f"{node['_meta']['title']}.{name}"
            for node in prompt.values()
            for name, now in node["inputs"].items()
            if not isinstance(now, list)
        ]
        raise ValueError(f'--set {assignment}: there is no single "{target}" here. There are: {", ".join(known)}.')
    ((node, name),) = found
    kind = type(node["inputs"][name])
    node["inputs"][name] = value.lower() in ("1", "true", "yes") if kind is bool else kind(value)


def names(key: str, node: dict, name: str) -> set[str]:
    """What a widget may be called: by its node's id, title or type, and its own name, which may have dots in it."""
    return {f"{label}.{name}" for label in (key, node["_meta"]["title"], node["class_type"])}
