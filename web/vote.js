/** SPIN Vote: two pictures side by side, blind, in an order and on sides that hang on the pairs alone. */

import { app } from "../../scripts/app.js";
import { addBox, fit, onNodes, view } from "./node_events.js";

const KEYS = { 1: "left", 2: "right", " ": "tie" };
const BUTTONS = [["1: left", "left"], ["space: tie", "tie"], ["2: right", "right"], ["u: undo", "undo"]];

/** A number that is as good as drawn: of a pair, the same again after a reload. */
export function drawn(id, salt) {
  let hash = 2166136261;
  for (const sign of id + salt) hash = Math.imul(hash ^ sign.charCodeAt(0), 16777619) >>> 0;
  return ((hash ^ (hash >>> 15)) >>> 0) / 2 ** 32;
}

/** Whether keys belong to what this element is: a person's words and choices elsewhere are no votes. */
const typing = (element) => element?.matches("input, textarea, select") || element?.isContentEditable;

class Vote {
  constructor(node) {
    this.node = node;
    this.pairs = [];
    this.box = addBox(node, "vote", () => (this.pairs.length ? this.node.size[0] / 2 + 90 : 30));
    this.box.tabIndex = 0;
    this.box.style.outline = "none";
    this.box.textContent = "After a run, choose the better pictures here.";
    this.box.onkeydown = (event) => this.press(event);
    this.box.onpointerenter = () => typing(document.activeElement) || this.box.focus({ preventScroll: true });
    this.prompt = document.createElement("div");
    this.prompt.style.cssText = "height:32px;overflow:hidden;text-align:center";
    this.pictures = ["left", "right"].map((side) => {
      const picture = document.createElement("img");
      picture.style.cssText = "width:49.5%;aspect-ratio:1;object-fit:contain;cursor:pointer;image-rendering:auto";
      picture.onclick = () => this.vote(side);
      return picture;
    });
    this.row = document.createElement("div");
    this.row.style.cssText = "display:flex;justify-content:space-between";
    this.row.append(...this.pictures);
    this.buttons = document.createElement("div");
    this.buttons.style.cssText = "display:flex;gap:4px;margin-top:4px";
    for (const [text, side] of BUTTONS) {
      const button = document.createElement("button");
      button.textContent = text;
      button.style.cssText = "flex:1;font-size:11px;padding:2px;cursor:pointer";
      button.onclick = () => (side === "undo" ? this.undo() : this.vote(side));
      this.buttons.append(button);
    }
    this.count = document.createElement("div");
    this.count.style.cssText = "text-align:center;margin-top:2px";
  }

  widget(name) {
    return this.node.widgets.find((widget) => widget.name === name);
  }

  get voter() {
    return this.widget("voter").value.trim().split(/\s+/).join(" "); // as it is read from a line
  }

  get lines() {
    return this.widget("votes").value.split("\n").filter((line) => line.trim());
  }

  set lines(lines) {
    this.widget("votes").value = lines.join("\n");
    this.widget("votes").callback?.(lines.join("\n"));
    app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.captureCanvasState?.(); // a reload finds it
    this.show();
  }

  /** The pairs that this voter has seen, by their lines. */
  get done() {
    const mine = this.lines.map((line) => line.split(/\s+/)).filter(([, , ...voter]) => voter.join(" ") === this.voter);
    return new Set(mine.map(([id]) => id));
  }

  get open() {
    const done = this.done;
    return this.pairs.filter(({ id }) => !done.has(id));
  }

  take({ pairs }) {
    if (!pairs) return;
    this.pairs = pairs.toSorted((a, b) => drawn(a.id, "order") - drawn(b.id, "order"));
    this.box.replaceChildren(this.prompt, this.row, this.buttons, this.count);
    fit(this.node);
    this.show();
  }

  show() {
    if (!this.pairs.length) return;
    const [pair, next] = this.open;
    const done = this.pairs.length - this.open.length;
    this.count.textContent = `${done} of ${this.pairs.length}` + (pair ? "" : ": all voted. Queue again to use the votes.");
    this.row.style.visibility = pair ? "visible" : "hidden";
    this.prompt.textContent = pair?.prompt ?? "";
    if (pair) this.sides(pair).forEach((side, i) => (this.pictures[i].src = view(pair[side])));
    if (next) for (const side of ["first", "second"]) new Image().src = view(next[side]); // no wait after the vote
  }

  sides({ id }) {
    return drawn(id, "side") < 0.5 ? ["first", "second"] : ["second", "first"];
  }

  vote(side) {
    const [pair] = this.open;
    if (!pair) return;
    const choice = side === "tie" ? "tie" : this.sides(pair)[side === "left" ? 0 : 1];
    this.lines = [...this.lines, `${pair.id} ${choice} ${this.voter}`.trim()];
  }

  undo() {
    const lines = this.lines;
    const last = lines.findLastIndex((line) => line.split(/\s+/).slice(2).join(" ") === this.voter);
    if (last >= 0) this.lines = lines.toSpliced(last, 1);
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // the host's shortcuts
    const side = KEYS[event.key];
    if (!side && event.key !== "u") return;
    event.preventDefault();
    event.stopPropagation();
    if (event.repeat) return; // a key that is held is one vote
    side ? this.vote(side) : this.undo();
  }
}

onNodes("vote", ["SPINVote"], (node) => new Vote(node));
