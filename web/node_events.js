/** The host's events, by the node that they are about, and boxes of ours on nodes. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

/** The node of an id as events carry it; inside a subgraph "3:7" is node 7 of the subgraph of node 3. */
export function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph;
  const path = String(id).split(":");
  for (const outer of path.slice(0, -1)) graph = graph?.getNodeById(Number(outer))?.subgraph;
  return graph?.getNodeById(Number(path.at(-1)));
}

/** Calls take(output) of the object that belongs to a node of these types, whenever the node has run; clear(), when it is gone. */
export function onNodes(name, types, create) {
  app.registerExtension({
    name: `vico-spin.${name}`,
    nodeCreated(node) {
      if (!types.includes(node.comfyClass)) return;
      const own = create(node);
      const before = node.onExecuted;
      node.onExecuted = function (output) {
        before?.apply(this, arguments);
        if (output) own.take(output);
      };
      const removed = node.onRemoved;
      node.onRemoved = function () {
        removed?.apply(this, arguments);
        own.clear?.();
      };
    },
  });
}

/** A box of ours on the node, as high as `height()` says, in both renderers. */
export function addBox(node, name, height) {
  const box = document.createElement("div");
  box.style.cssText = "position:relative;width:100%;overflow:hidden;color:var(--input-text);font-size:12px;user-select:none";
  const options = { getMinHeight: height, serialize: false, hideOnZoom: false };
  node.addDOMWidget(name, `vico_spin_${name}`, box, options).serialize = false; // in the prompt, and in the file
  return box;
}

/** Makes the node as high as what stands on it. */
export function fit(node) {
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  node.setDirtyCanvas(true, true);
}

/**
 * Hands the pictures of running nodes to take(node, blob). Where that returns true, the host does not show them a second time;
 * those of a node inside a closed subgraph it does, on the subgraph's node.
 */
export function takePreviews(take) {
  api.addEventListener("b_preview_with_metadata", (event) => {
    const node = nodeOf(event.detail.displayNodeId ?? event.detail.nodeId);
    if (node && take(node, event.detail.blob) && node.graph === app.canvas.graph) event.stopImmediatePropagation();
  });
}

export const view = (file) => api.apiURL("/view?" + new URLSearchParams(file));
