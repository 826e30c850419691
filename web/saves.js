/** After a node has written: a button on it that opens the file, and Load nodes that offer it. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeOf, view } from "./node_events.js";

const WRITERS = ["ViCoTrain", "ViCoSaveConcept", "SPINTrain", "SPINTrainBaseline", "SPINSave", "SPINVote"];
const OPENED = ["ViCoSaveConcept", "SPINSave", "ScoreReport"]; // another workflow's node may bear the id of one that ran
const BUTTON = "vico-spin written";
let renew = false; // whether a writer has run since the lists were read

/** The host hands pages out as downloads, lest they act in its name: a frame of no origin shows them and is safe. */
async function open(file) {
  if (!file.filename.endsWith(".html")) return window.open(view(file));
  const frame = window.open().document.body.appendChild(document.createElement("iframe"));
  frame.style.cssText = "position: fixed; inset: 0; width: 100%; height: 100%; border: 0";
  frame.sandbox = "allow-scripts";
  frame.srcdoc = await (await fetch(view(file))).text();
}

function link(node, file) {
  let button = node.widgets?.find((widget) => widget.name === BUTTON);
  button ??= node.addWidget("button", BUTTON, null, () => open(button.file), { serialize: false });
  button.serialize = false; // the option keeps it out of the prompt alone; a value in the file would shift the others
  button.label = `open ${file.filename}`;
  button.file = file;
  node.setDirtyCanvas(true);
}

function renewLists() {
  if (renew) app.reloadNodeDefs();
  renew = false;
}

app.registerExtension({
  name: "vico-spin.saves",
  setup() {
    api.addEventListener("executing", ({ detail }) => (renew ||= WRITERS.includes(nodeOf(detail)?.type)));
    for (const end of ["execution_success", "execution_interrupted", "execution_error"])
      api.addEventListener(end, renewLists);
    api.addEventListener("executed", ({ detail }) => {
      const [node, file] = [nodeOf(detail.display_node ?? detail.node), detail.output?.written?.[0]];
      if (OPENED.includes(node?.type) && file) link(node, file);
    });
  },
});
