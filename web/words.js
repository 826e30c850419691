/** What nodes of this pack say: an error goes from its node when the next run is queued. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const WORDS = "$$node-text-preview"; // the host's widget for a node's progress text
const ERROR = "Error: "; // as nodes/host/errors.py marks it

function takeErrorsOff(graph) {
  for (const node of graph.nodes) {
    if (node.subgraph) takeErrorsOff(node.subgraph);
    const place = node.widgets?.findIndex((widget) => widget.name === WORDS) ?? -1;
    if (place < 0 || !String(node.widgets[place].value).startsWith(ERROR)) continue;
    node.widgets[place].onRemove?.();
    node.widgets.splice(place, 1);
    node.setDirtyCanvas(true);
  }
}

app.registerExtension({
  name: "vico-spin.words",
  setup: () => api.addEventListener("promptQueueing", () => takeErrorsOff(app.rootGraph ?? app.graph)),
});
