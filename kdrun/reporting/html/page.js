"use strict";
// Sorting: a click or a key on a heading; once more turns the order, a third time brings the table's own order back.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], own = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const turned = { ascending: "descending", descending: "ascending" };
  const value = (row, place) => row.cells[place].dataset.sort ?? row.cells[place].textContent.trim();
  const compare = (one, other, sign) => {
    const empty = (text) => text === "" || text === "–" || text === "failed";
    if (empty(one) || empty(other)) return empty(one) - empty(other); // always last
    const [a, b] = [one, other].map((text) => parseFloat(text.replace(/^<\s*/, "")));
    const numbers = !isNaN(a) && !isNaN(b);
    return sign * (numbers ? a - b : one.localeCompare(other, undefined, { numeric: true }));
  };
  heads.forEach((head, place) => head.querySelector("button").addEventListener("click", () => {
    const now = head.getAttribute("aria-sort"), first = head.dataset.first;
    const next = now === "none" ? first : now === first ? turned[first] : "none";
    heads.forEach((other) => other.setAttribute("aria-sort", other === head ? next : "none"));
    const sign = next === "ascending" ? 1 : -1;
    const rows = next === "none" ? own : [...own].sort((a, b) => compare(value(a, place), value(b, place), sign));
    body.append(...rows);
  }));
}

// A link to a run unfolds everything around it, also where the address is that already and the part is folded again.
function unfold(hash) {
  const target = hash && document.getElementById(hash.slice(1));
  if (!target || !target.closest("#runs")) return;
  for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", () => unfold(location.hash));
document.addEventListener("click", (event) => unfold(event.target.closest('a[href^="#"]')?.hash));
unfold(location.hash);

// The legend: pointing at a name lights its lines in every chart, pressing it keeps them lit.
const held = new Set();
function light(row) {
  const lit = row === null ? held : new Set([...held, row]);
  for (const shape of document.querySelectorAll(".charts .s")) shape.classList.toggle("lit", lit.has(shape.dataset.row));
  for (const chart of document.querySelectorAll(".charts svg.chart")) chart.classList.toggle("dim", lit.size > 0);
}
for (const key of document.querySelectorAll("button.key")) {
  const row = key.dataset.row;
  key.addEventListener("mouseenter", () => light(row));
  key.addEventListener("mouseleave", () => light(null));
  key.addEventListener("click", () => {
    held.has(row) ? held.delete(row) : held.add(row);
    for (const same of document.querySelectorAll(`button.key[data-row="${row}"]`)) {
      same.setAttribute("aria-pressed", held.has(row));
    }
    light(null);
  });
}
