/** The trainers' panel: the loss or the margin with its mean, the implicit accuracy and the score as they come; the previews over the steps. */

import { api } from "../../scripts/api.js";
import { addBox, fit, nodeOf, onNodes, takePreviews } from "./node_events.js";

const TRAINERS = ["ViCoTrain", "SPINTrain", "SPINTrainBaseline"];
const CURVE = 90; // pixels of height
const SPAN = 20; // steps that the mean looks back over
const STEP =
  /^(?:Round (\d+)\. )?Step (\d+) of (\d+): loss (\S+?)(?:, margin (\S+))?\n(?:accuracy (\S+?), )?(?:score (\S+?), )?\d/m;
const [LINE, MEAN, ACCURACY, SCORE] = ["#8888", "#4c9be8", "#e0a23c", "#5fb878"];

/** The mean of each value and those up to `span` before it; what is not known yet counts for nothing. */
export function means(values, span = SPAN) {
  let [sum, count] = [0, 0];
  return Array.from(values, (value, i) => {
    if (Number.isFinite(value)) [sum, count] = [sum + value, count + 1];
    if (Number.isFinite(values[i - span])) [sum, count] = [sum - values[i - span], count - 1];
    return sum / count;
  });
}

class Panel {
  constructor(node) {
    this.node = node;
    node.vicoSpinPanel = this;
    this.box = addBox(node, "training", () => this.height());
    this.canvas = document.createElement("canvas");
    this.canvas.style.cssText = `width:100%;height:${CURVE}px;display:block`;
    this.canvas.onclick = () => this.change();
    this.picture = document.createElement("img");
    this.picture.style.cssText = "width:100%;display:block";
    this.picture.onload = () => fit(node);
    this.slider = Object.assign(document.createElement("input"), { type: "range", min: 0 });
    this.slider.style.cssText = "width:100%;display:none";
    this.slider.oninput = () => this.show(Number(this.slider.value));
    this.slider.onpointerdown = (event) => event.stopPropagation();
    this.label = document.createElement("div");
    this.box.append(this.canvas, this.picture, this.label, this.slider);
    this.clear();
  }

  clear() {
    this.previews?.forEach(({ address }) => URL.revokeObjectURL(address));
    Object.assign(this, { loss: [], margin: [], accuracy: [], score: [], previews: [], round: "1", before: 0, total: 1 });
    this.picture.removeAttribute("src");
    this.label.textContent = this.slider.style.display = "";
    this.slider.style.display = "none";
    this.draw();
  }

  height() {
    const { naturalWidth, naturalHeight } = this.picture;
    const strip = this.previews.length ? ((this.node.size[0] - 20) * naturalHeight) / (naturalWidth || 1) + 40 : 0;
    return CURVE + strip;
  }

  /** A line of progress: round, step and total, loss; of pairs margin and accuracy too; score. */
  step(round = "1", step, total, loss, margin, accuracy, score) {
    if (round !== this.round) this.before = this.loss.length;
    this.round = round;
    this.total = this.before + Number(total);
    const at = this.before + Number(step) - 1;
    this.loss[at] = Number(loss);
    if (margin) [this.margin[at], this.accuracy[at]] = [Number(margin), Number(accuracy)];
    if (score) this.score[at] = Number(score);
    this.draw();
  }

  preview(blob) {
    const at = this.loss.length ? `step ${this.loss.length}` : "the opponent's pictures";
    this.previews.push({ address: URL.createObjectURL(blob), at });
    this.slider.max = this.previews.length - 1;
    this.slider.style.display = this.previews.length > 1 ? "" : "none";
    this.show(this.previews.length - 1);
    return true;
  }

  show(number) {
    this.slider.value = number;
    this.picture.src = this.previews[number].address;
    this.label.textContent = this.previews[number].at;
  }

  /** What the run came to, whole: a resumed or cached one too. */
  take({ training }) {
    if (!training) return;
    Object.assign(this, { score: [] }, training[0]);
    this.total = this.loss.length;
    this.draw();
    fit(this.node);
  }

  /** A click: the margin instead of the loss, where there is one, and back. */
  change() {
    this.other = !this.other;
    this.draw();
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.paint());
  }

  paint() {
    const [width, height] = [(this.canvas.width = 2 * (this.canvas.clientWidth || 300)), (this.canvas.height = 2 * CURVE)];
    const pen = this.canvas.getContext("2d");
    const paired = this.margin.some(Number.isFinite);
    const shown = paired && this.other ? "margin" : "loss";
    const values = this[shown];
    const known = values.filter(Number.isFinite);
    pen.font = "20px sans-serif";
    pen.fillStyle = getComputedStyle(this.box).color;
    if (!known.length) return pen.fillText("loss, step by step, while it trains", 8, 26);
    const range = (values) => values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
    const [low, high] = range(known);
    const scores = this.score.filter(Number.isFinite);
    const top = scores.length ? 56 : 36;
    const x = (i) => 4 + ((width - 8) * (i + 1)) / Math.max(this.total, this.loss.length);
    const line = (values, colour, [low, high]) => {
      pen.beginPath();
      pen.strokeStyle = colour;
      pen.lineWidth = 2;
      values.forEach((value, i) => Number.isFinite(value) && pen.lineTo(x(i), height - 4 - ((height - 4 - top) * (value - low)) / (high - low || 1)));
      pen.stroke();
    };
    line(values, LINE, [low, high]);
    line(means(values), MEAN, [low, high]);
    line(means(this.accuracy), ACCURACY, [0, 1]);
    line(this.score, SCORE, range(scores));
    pen.fillStyle = MEAN;
    pen.fillText(`${shown} ${means(values).at(-1).toFixed(4)} (mean of ${SPAN})`, 8, 22);
    pen.fillStyle = SCORE;
    if (scores.length) pen.fillText(`score ${scores.at(-1).toFixed(3)}, best ${range(scores)[1].toFixed(3)}`, width - 260, 46);
    if (!paired) return;
    pen.fillStyle = MEAN;
    pen.fillText(shown === "loss" ? "click: margin" : "click: loss", 8, 46);
    pen.fillStyle = ACCURACY;
    pen.fillText(`accuracy ${means(this.accuracy).at(-1).toFixed(2)}`, width - 180, 22);
  }
}

onNodes("training-panel", TRAINERS, (node) => new Panel(node));

takePreviews((node, blob) => node.vicoSpinPanel?.preview(blob));
const panelOf = (id) => nodeOf(id)?.vicoSpinPanel;
api.addEventListener("executing", ({ detail }) => panelOf(detail)?.clear());
api.addEventListener("progress_text", ({ detail }) => {
  const found = STEP.exec(detail.text);
  if (found) panelOf(detail.nodeId)?.step(...found.slice(1));
});
