// Sorts and filters the pictures' rows, and shows the chosen scorer's numbers under them.
const rows = document.getElementById("rows");
const articles = [...rows.children];
const scorer = document.getElementById("scorer");
const sort = document.getElementById("sort");
const find = document.getElementById("find");
const leadOf = (article) => Number(article.dataset.lead.split(" ")[scorer.value]);
const signed = (value) => (value > 0 ? "+" : "") + value.toPrecision(3).replace("-", "\u2212");

function showScores() {
  for (const article of articles) {
    const lead = leadOf(article);
    const label = article.querySelector(".lead-of");
    label.textContent = sort.options.length > 1 ? signed(lead) : "";
    label.className = "lead-of " + (lead > 0 ? "better" : lead < 0 ? "worse" : "even");
    const captions = [...article.querySelectorAll("figcaption")];
    const shown = captions.map((caption) => caption.dataset.s.split("|")[scorer.value]);
    const numbers = shown.map((text) => Number(text.replace("\u2212", "-")));
    const top = Math.max(...numbers.filter(Number.isFinite));
    captions.forEach((caption, i) => {
      caption.textContent = shown[i];
      caption.className = numbers[i] === top ? "top" : "";
    });
  }
}

function arrange() {
  const sign = { worst: 1, best: -1, order: 0 }[sort.value];
  const by = (a, b) => sign * (leadOf(a) - leadOf(b)) || a.dataset.i - b.dataset.i;
  rows.append(...articles.sort(by));
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const article of articles) {
    const prompt = article.querySelector("h3").textContent.toLowerCase();
    article.hidden = !words.every((word) => prompt.includes(word));
    shown += !article.hidden;
  }
  document.getElementById("count").textContent = `${shown} of ${articles.length} shown`;
}

scorer.addEventListener("change", () => { showScores(); arrange(); });
sort.addEventListener("change", arrange);
find.addEventListener("input", arrange);
showScores();
arrange();
