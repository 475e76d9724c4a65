"use strict";

// What stands in `title` attributes, for keyboard and touch too: one bubble for the page. A table is one stop of the tab
// key, and arrows move in it. Scripts that write `title`s need nothing of this; those that make tables call
// `hints.adopt(table)`.
const hints = (() => {
  const TITLED = "[title], [data-hinted]";
  const FOCUSABLE = "a[href], button, input, select, textarea, summary";
  const OWN_ARROWS = "input:not([type=checkbox], [type=radio], [type=button]), select, textarea";
  const bubble = document.createElement("div");
  bubble.id = "hint";
  bubble.setAttribute("role", "tooltip");
  bubble.hidden = true;
  if (bubble.showPopover) bubble.popover = "manual"; // above dialogs
  document.body.append(bubble);

  // ---- the bubble ---------------------------------------------------------------------------------------------------

  let of = null, text = "", timer = 0;
  // A script may write another title while its bubble is seen.
  const watcher = new MutationObserver(() => {
    if (of && of.title) take(of);
  });

  function take(element) {
    text = element.title;
    element.removeAttribute("title"); // or the browser shows it, too
    bubble.textContent = text;
    place();
  }

  function show(element) {
    clearTimeout(timer);
    if (element === of) return;
    hide();
    if (!element || !element.title) return;
    of = element;
    of.dataset.hinted = "";
    bubble.hidden = false;
    if (bubble.showPopover) bubble.showPopover();
    take(of);
    const described = [of.getAttribute("aria-describedby"), "hint"].filter(Boolean);
    of.setAttribute("aria-describedby", described.join(" "));
    watcher.observe(of, { attributes: true, attributeFilter: ["title"] });
  }

  function hide() {
    clearTimeout(timer);
    if (!of) return;
    watcher.disconnect();
    if (!of.title) of.title = text;
    delete of.dataset.hinted;
    const described = (of.getAttribute("aria-describedby") || "").split(" ").filter((id) => id && id !== "hint");
    if (described.length) of.setAttribute("aria-describedby", described.join(" "));
    else of.removeAttribute("aria-describedby");
    of = null;
    if (bubble.hidePopover) bubble.hidePopover();
    bubble.hidden = true;
  }

  // Below its element, or above where there is no room; inside the window.
  function place() {
    const box = of.getBoundingClientRect(), { offsetWidth: width, offsetHeight: height } = bubble;
    if (!box.width || box.bottom < 0 || box.top > innerHeight) return hide();
    const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8));
    const below = box.bottom + 4 + height <= innerHeight || box.top < height + 4;
    bubble.style.left = `${left}px`;
    bubble.style.top = `${below ? box.bottom + 4 : box.top - height - 4}px`;
  }

  const titled = (target) => (target.closest ? target.closest(TITLED) : null);

  addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch") return;
    clearTimeout(timer);
    if (bubble.contains(event.target)) return; // it can be read and copied from
    const element = titled(event.target);
    if (element !== of) timer = setTimeout(() => show(element), of && !element ? 150 : of ? 50 : 250);
  });
  document.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") hide(); });
  addEventListener("pointerup", (event) => {
    if (event.pointerType === "touch" && !bubble.contains(event.target)) show(titled(event.target));
  });
  addEventListener("focusin", (event) => {
    if (event.target.matches(":focus-visible")) show(titled(event.target));
  });
  addEventListener("focusout", (event) => { if (of && titled(event.target) === of) hide(); });
  addEventListener("scroll", () => { if (of) place(); }, { passive: true, capture: true });
  addEventListener("beforeprint", hide);
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !of) return;
    hide();
    event.stopImmediatePropagation();
    event.preventDefault();
  }, true);

  // ---- tables -------------------------------------------------------------------------------------------------------

  const seen = (element) => element.getClientRects().length > 0;

  // Where the focus can be in a cell: on what is in it, or on the cell itself.
  function stops(cell) {
    const inside = [...cell.querySelectorAll(`${FOCUSABLE}, ${TITLED}`)].filter((e) => seen(e) && !e.disabled);
    return inside.length ? inside : [cell];
  }

  const rowsOf = (table) => [...table.rows].filter((row) => !row.classList.contains("groups") && seen(row));
  const rowStops = (row) => [...row.cells].filter(seen).flatMap(stops);

  function enter(table, element) {
    for (const old of table.querySelectorAll("[tabindex='0']")) old.tabIndex = -1;
    element.tabIndex = 0;
    element.focus();
  }

  function target(event, table) {
    const row = event.target.closest("tr"), cell = event.target.closest("td, th");
    const inRow = rowStops(row), at = inRow.indexOf(event.target);
    const rows = rowsOf(table), line = rows.indexOf(row);
    const inColumn = (other) => {
      const there = other && (other.cells[cell.cellIndex] || other.cells[other.cells.length - 1]);
      return there && (seen(there) ? stops(there)[0] : rowStops(other)[0]);
    };
    const all = event.ctrlKey || event.metaKey;
    switch (event.key) {
      case "ArrowRight": return inRow[at + 1];
      case "ArrowLeft": return inRow[at - 1];
      case "ArrowDown": return inColumn(rows[line + 1]);
      case "ArrowUp": return inColumn(rows[line - 1]);
      case "Home": return all ? rowStops(rows[0])[0] : inRow[0];
      case "End": return (all ? rowStops(rows[rows.length - 1]) : inRow).at(-1);
      default: return undefined;
    }
  }

  addEventListener("keydown", (event) => {
    const table = event.target.closest && event.target.closest("table[role=grid]");
    if (!table || event.altKey || event.target.matches(OWN_ARROWS) || event.defaultPrevented) return;
    if (!/^(Arrow|Home$|End$)/.test(event.key)) return;
    event.preventDefault();
    const next = target(event, table);
    if (next) enter(table, next);
  });
  // What is clicked on in a table is where the arrows go on from.
  addEventListener("focusin", (event) => {
    const table = event.target.closest("table[role=grid]");
    if (!table || event.target.tabIndex === 0) return;
    for (const old of table.querySelectorAll("[tabindex='0']")) old.tabIndex = -1;
    event.target.tabIndex = 0;
  });

  function adoptTable(table) {
    if (!seen(table) || !table.querySelector(`button, input, ${TITLED}`)) return;
    table.setAttribute("role", "grid");
    const box = table.closest(".scroll");
    if (box) box.removeAttribute("tabindex"); // its cells are what is reached
    for (const element of table.querySelectorAll(FOCUSABLE)) element.tabIndex = -1;
    const first = [...table.querySelectorAll("[tabindex='0']")].find(seen) || rowStops(rowsOf(table)[0])[0];
    if (first) first.tabIndex = 0;
  }

  // Make what is below an element reachable; again after its tables have changed.
  function adopt(root) {
    const tables = root.matches && root.matches("table") ? [root] : root.querySelectorAll("table");
    for (const table of tables) adoptTable(table);
    for (const element of root.querySelectorAll("[title]")) {
      if (!element.matches(`${FOCUSABLE}, [tabindex], iframe`) && !element.closest("table, svg")) element.tabIndex = 0;
    }
  }

  addEventListener("toggle", (event) => {
    if (event.target.open) setTimeout(() => adopt(event.target));
  }, true);
  addEventListener("DOMContentLoaded", () => adopt(document)); // when other scripts have made their tables

  return { adopt };
})();
