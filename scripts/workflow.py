"""The workflow JSON that the browser saves, as what the host executes."""

from dataclasses import dataclass
from functools import cached_property

SEED_CONTROLS = {"fixed", "increment", "decrement", "randomize"}
DRAWN_ONLY = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
SLIDER, UPLOAD_BUTTON = "IMAGECOMPARE", "IMAGEUPLOAD"  # widgets that save nothing, and that send nothing
MUTED, BYPASSED = 2, 4  # a node's mode, as litegraph numbers it
INPUTS = -10  # the id of a subgraph's own inputs
ANYTHING = {"*", ""}
TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def to_api(workflow: dict) -> dict:
    """The browser's workflow JSON → the API's {node id: {class_type, inputs}}. An API-form file passes as it is.

    As in the browser: muted nodes are left out, bypassed ones hand on what they are given, subgraphs are laid open.
    Texts are sent as they stand: the browser would draw from {a|b}, leave out comments and fill %date:…% in a save's name.
    """
    if "nodes" not in workflow:
        return workflow
    prompt = {graph.id_of(node): graph.api(node) for graph, node in Graph(workflow, subgraphs_of(workflow)).running()}
    for node in prompt.values():
        node["inputs"] = {name: value for name, value in node["inputs"].items() if not gone(value, prompt)}
    return prompt


def gone(value, prompt: dict) -> bool:
    """Whether an input is a link from a node that does not run."""
    return isinstance(value, Link) and value[0] not in prompt


class Link(list):
    """[node id, output slot]: what an input is connected to, told from a widget's value that is a list."""


def subgraphs_of(graph: dict) -> dict[str, dict]:
    """{id: a subgraph's definition}, those inside others too."""
    own = (graph.get("definitions") or {}).get("subgraphs", [])
    return {id: found for inner in own for id, found in [(inner["id"], inner), *subgraphs_of(inner).items()]}


@dataclass(frozen=True)
class Graph:
    """A graph of the JSON, or a subgraph as one of its nodes runs it. outer: the graph around it, and that node."""

    data: dict
    subgraphs: dict[str, dict]
    path: str = ""
    outer: "tuple[Graph, dict] | None" = None

    @cached_property
    def nodes(self) -> dict:
        return {node["id"]: node for node in self.data["nodes"]}

    @cached_property
    def links(self) -> dict:
        """{a link's id: (the node that it comes from, that node's slot)}; the top graph has them as lists."""
        as_pairs = (
            (x["id"], (x["origin_id"], x["origin_slot"])) if isinstance(x, dict) else (x[0], tuple(x[1:3]))
            for x in self.data["links"]
        )
        return dict(as_pairs)

    def id_of(self, node: dict) -> str:
        return f"{self.path}{node['id']}"

    def inside(self, node: dict) -> "Graph":
        return Graph(self.subgraphs[node["type"]], self.subgraphs, f"{self.id_of(node)}:", (self, node))

    def running(self):
        """(graph, node) of every node that the host is to run."""
        for node in self.data["nodes"]:
            if node.get("mode") in (MUTED, BYPASSED) or node["type"] in DRAWN_ONLY:
                continue
            if node["type"] in self.subgraphs:
                yield from self.inside(node).running()
            else:
                yield self, node

    def api(self, node: dict) -> dict:
        sources = ((slot["name"], self.source(node, i)) for i, slot in enumerate(node.get("inputs", [])))
        linked = {name: source for name, source in sources if source is not None}
        title = node.get("title", node["type"])
        return {"class_type": node["type"], "inputs": widget_values(node) | linked, "_meta": {"title": title}}

    def source(self, node: dict, index: int):
        """What comes in at an input: a Link, the value of a subgraph's widget, or None."""
        link = node["inputs"][index].get("link")
        return None if link is None else self.behind(link, node["inputs"][index].get("type", "*"))

    def behind(self, link: int, kind: str):
        origin, slot = self.links[link]
        if origin != INPUTS:
            return self.output(self.nodes[origin], slot, kind)
        graph, host = self.outer
        name = self.data["inputs"][slot]["name"]
        index = next(i for i, found in enumerate(host["inputs"]) if found["name"] == name)
        widget = host["inputs"][index].get("widget", {}).get("name")
        return (
            graph.source(host, index)
            if host["inputs"][index].get("link") is not None
            else widget_values(host).get(widget)
        )

    def output(self, node: dict, slot: int, kind: str):
        """What an output gives: itself, or what a bypassed node, a Reroute or a subgraph hands on."""
        if node.get("mode") == MUTED or node["type"] == "PrimitiveNode":
            return None
        if node.get("mode") == BYPASSED:
            index = handed_on(node, slot, kind)
            return None if index is None else self.source(node, index)
        if node["type"] == "Reroute":
            return self.source(node, 0)
        if node["type"] in self.subgraphs:
            inside = self.inside(node)
            links = inside.data["outputs"][slot].get("linkIds") or [None]
            return None if links[0] is None else inside.behind(links[0], kind)
        return Link([self.id_of(node), slot])


def handed_on(node: dict, slot: int, kind: str) -> int | None:
    """Which input a bypassed node gives on at an output: the one at the same place, else the first that fits."""
    inputs, made = node.get("inputs", []), node["outputs"][slot]["type"]
    kinds = [found.get("type", "*") for found in inputs]
    if kind in ANYTHING:
        return (slot if slot < len(inputs) else 0) if inputs else None
    if slot < len(inputs) and fits(kinds[slot], made) and fits(kinds[slot], kind):
        return slot
    exact = (i for i, found in enumerate(kinds) if found == kind)
    fitting = (i for i, found in enumerate(kinds) if fits(found, made) and fits(found, kind))
    return next(exact, next(fitting, None))


def fits(a: str, b: str) -> bool:
    """Whether litegraph connects two types: equal ones, anything, or lists with a common member."""
    return bool({a, b} & ANYTHING) or bool(set(str(a).lower().split(",")) & set(str(b).lower().split(",")))


def widget_values(node: dict) -> dict:
    """The widgets' values by name; the browser stores them in a row, with a control behind each seed."""
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return dict(values)
    values, found = list(values), {}
    for slot in node.get("inputs", []):
        if slot["type"] == SLIDER:
            found[slot["widget"]["name"]] = {"__value__": ["", ""]}
            continue
        if "widget" not in slot or not values:
            continue
        name = slot["widget"]["name"]
        value = values.pop(0)
        if slot["type"] != UPLOAD_BUTTON:
            found[name] = value
        if name in ("seed", "noise_seed") and values and values[0] in SEED_CONTROLS:
            values.pop(0)
    return found


def set_input(prompt: dict, assignment: str) -> None:
    """`TITLE.input=value` or `ID.input=value`: changes one widget of an API prompt. ValueError names what there is."""
    target, _, value = assignment.partition("=")
    widgets = [
        (key, node, name)
        for key, node in prompt.items()
        for name, now in node["inputs"].items()
        if not isinstance(now, list)
    ]
    found = [(node, name) for key, node, name in widgets if target in names(key, node, name)]
    if len(found) != 1:
        known = ", ".join(f"{title_of(node)}.{name}" for _, node, name in widgets)
        raise ValueError(f'--set {assignment}: there is no single "{target}" here. There are: {known}.')
    ((node, name),) = found
    now = node["inputs"][name]
    try:
        node["inputs"][name] = like(now, value)
    except (KeyError, ValueError):
        raise ValueError(f'--set {assignment}: {target} is {now!r} here, and "{value}" is not of that kind.') from None


def like(now, value: str):
    """The text as the kind of value that a widget holds now; KeyError or ValueError where it is none."""
    if isinstance(now, bool):
        return TRUTH[value.lower()]
    if isinstance(now, int | float):  # whichever: a browser writes 1.0 as 1
        return float(value) if set(value.lower()) & set(".e") else int(value)
    return value


def names(key: str, node: dict, name: str) -> set[str]:
    """What a widget may be called: by its node's id, title or type, and its own name, which may have dots in it."""
    return {f"{label}.{name}" for label in (key, title_of(node), node["class_type"])}


def title_of(node: dict) -> str:
    """As on the node; an API-form file need not have it."""
    return node.get("_meta", {}).get("title", node["class_type"])
