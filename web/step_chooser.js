/** ViCo Checkpoint Grid: the grid on the node, where a click on a row chooses the step whose concept goes out. */

import { addBox, fit, onNodes, takePreviews, view } from "./node_events.js";

const EMPTY = 30; // pixels of height before the first run

class StepChooser {
  constructor(node) {
    this.node = node;
    node.vicoSpinRows = this;
    this.rows = [];
    this.box = addBox(node, "rows", () => this.height());
    this.box.style.cursor = "pointer";
    this.box.textContent = "After a run the rows are here. Click on the best.";
    this.picture = document.createElement("img");
    this.picture.style.cssText = "width:100%;display:block";
    this.picture.onload = () => [URL.revokeObjectURL(this.picture.src), fit(node), this.show()]; // a preview's memory
    this.mark = document.createElement("div");
    this.mark.style.cssText =
      "position:absolute;left:0;width:100%;box-sizing:border-box;border:3px solid #2a9d6f;pointer-events:none";
    this.frame = document.createElement("div"); // as high as the picture, where the box may be higher
    this.frame.style.position = "relative";
    this.box.onclick = (event) => this.choose(event);
  }

  get choice() {
    return this.node.widgets.find((widget) => widget.name === "choice");
  }

  height() {
    const { naturalWidth, naturalHeight } = this.picture;
    return naturalWidth ? ((this.node.size[0] - 20) * naturalHeight) / naturalWidth : EMPTY;
  }

  take({ steps_to_choose, grid }) {
    if (!steps_to_choose) return;
    this.rows = steps_to_choose;
    this.picture.src = view(grid[0]);
    this.frame.replaceChildren(this.picture, this.mark);
    this.box.replaceChildren(this.frame);
  }

  /** The rows so far. */
  preview(blob) {
    this.rows = [];
    this.picture.src = URL.createObjectURL(blob);
    this.box.replaceChildren(this.picture);
    return true;
  }

  show() {
    const row = this.rows.find(({ step }) => step === this.choice.value) ?? this.rows.at(-1);
    if (!row) return;
    const share = (pixels) => `${(100 * pixels) / this.picture.naturalHeight}%`;
    this.mark.style.top = share(row.place[0] - 4);
    this.mark.style.height = share(row.place[1] - row.place[0] + 8);
  }

  choose(event) {
    if (!this.rows.length) return;
    const { top, height } = this.picture.getBoundingClientRect();
    const y = ((event.clientY - top) / height) * this.picture.naturalHeight;
    const row = this.rows.find(({ place }) => y < place[1]) ?? this.rows.at(-1);
    this.choice.value = row.step;
    this.choice.callback?.(row.step);
    this.show();
    this.node.setDirtyCanvas(true);
  }
}

onNodes("step-chooser", ["ViCoCheckpointGrid"], (node) => new StepChooser(node));
takePreviews((node, blob) => node.vicoSpinRows?.preview(blob));
