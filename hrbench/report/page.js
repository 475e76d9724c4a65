"use strict";

// Append an element, drawn where it is or stands in an svg; operating.js and explorer.js make all of theirs by it.
const { namespaceURI: DRAWN } = new DOMParser().parseFromString("<svg></svg>", "text/html").body.firstChild;
function make(parent, name, text, attributes) {
  const drawn = name === "svg" || parent.namespaceURI === DRAWN;
  const child = drawn ? document.createElementNS(DRAWN, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) child.setAttribute(key, value);
  if (text) child.textContent = text;
  parent.append(child);
  return child;
}

// Sort a table by the column of the pressed button; rows without a value stay at the end either way.
function sortBy(button) {
  const head = button.closest("th");
  const before = head.getAttribute("aria-sort");
  // Numbers start with the best on top, names and ranks with the first.
  const most = head.classList.contains("number") && !head.classList.contains("least");
  const first = most ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = before === first ? other : first;
  for (const h of head.parentElement.children) h.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  arrange(head);
}

// Put the rows into the order that the head of a column tells.
function arrange(head) {
  const column = [...head.parentElement.children].indexOf(head);
  const body = head.closest("table").tBodies[0];
  const order = head.getAttribute("aria-sort");
  const keyed = [...body.rows].map((row) => ({ row, key: row.cells[column].dataset.sort || "" }));
  const isNumber = ({ key }) => key === "" || !isNaN(parseFloat(key));
  const numeric = !head.classList.contains("text") && keyed.every(isNumber);
  const sign = order === "ascending" ? 1 : -1;
  const between = numeric ? (x, y) => parseFloat(x) - parseFloat(y) : new Intl.Collator().compare;
  keyed.sort(({ key: x }, { key: y }) =>
    x === "" || y === "" ? (x === "") - (y === "") : sign * between(x, y));
  body.append(...keyed.map(({ row }) => row));
}

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => sortBy(button));
}

// A link into a closed section opens it.
function reveal() {
  const target = document.getElementById(address.anchor());
  for (let e = target; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
  if (target && location.hash.includes("&")) target.scrollIntoView(); // the browser looks for the whole as an anchor
}
addEventListener("hashchange", reveal);
reveal();

// On paper nothing can be opened: print everything, then close again what was closed.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const d of closed) d.open = true;
});
addEventListener("afterprint", () => {
  for (const d of closed) d.open = false;
});
