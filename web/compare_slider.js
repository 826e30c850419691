/** Compare Models: pictures of the first two models over each other, with a slider from one to the other. */

import { addBox, fit, onNodes, view } from "./node_events.js";

const SIDE = 320; // pixels at most, so that the grid below has its room

class CompareSlider {
  constructor(node) {
    this.node = node;
    node.vicoSpinSlider = this;
    this.pairs = [];
    this.box = addBox(node, "compare", () => (this.pairs.length ? Math.min(SIDE, this.node.size[0]) + 30 : 30));
    this.box.textContent = "After a run, the first two models stand here under a slider.";
    this.frame = document.createElement("div");
    this.frame.style.cssText = `position:relative;width:100%;max-width:${SIDE}px;margin:auto;aspect-ratio:1;cursor:ew-resize`;
    this.pictures = ["first", "second"].map(() => {
      const picture = document.createElement("img");
      picture.style.cssText = "position:absolute;width:100%;height:100%;object-fit:contain;pointer-events:none";
      return picture;
    });
    this.frame.append(...this.pictures);
    this.frame.onpointermove = ({ offsetX }) => this.part(offsetX / this.frame.clientWidth);
    this.label = document.createElement("div");
    this.label.style.cssText = "height:30px;text-align:center;overflow:hidden;cursor:pointer";
    this.label.onclick = () => this.show((this.number + 1) % this.pairs.length);
  }

  take({ compared }) {
    if (!compared) return;
    Object.assign(this, compared[0]);
    this.box.replaceChildren(this.frame, this.label);
    this.part(0.5);
    this.show(0);
    fit(this.node);
  }

  show(number) {
    this.number = number;
    const pair = this.pairs[number];
    [pair.first, pair.second].forEach((file, i) => (this.pictures[i].src = view(file)));
    this.label.textContent = `${this.names.join(" | ")}: ${pair.prompt} (${number + 1} of ${this.pairs.length}; click: next)`;
  }

  /** The first model's picture left of `share`, the second's right of it. */
  part(share) {
    this.pictures[1].style.clipPath = `inset(0 0 0 ${100 * share}%)`;
  }
}

onNodes("compare-slider", ["ScoreCompareModels"], (node) => new CompareSlider(node));
