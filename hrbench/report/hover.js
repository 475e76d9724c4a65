"use strict";

// Plots that answer: the value of the nearest curve under the pointer, or by the arrow keys; an entry of a legend, a
// click on it or Enter, picks a method out in all plots and tables. hrbench.report.plot_marks writes what is read here.
(() => {
  const names = JSON.parse(document.querySelector("main").dataset.rows);
  const readout = document.createElement("div");
  readout.id = "readout";
  readout.hidden = true;
  document.body.append(readout);

  // ---- what is drawn ------------------------------------------------------------------------------------------------

  const models = new WeakMap();

  // Panels of a plot with their curves, or their markers where they have no curve, in the units of the SVG.
  function modelOf(svg) {
    const first = svg.querySelector("[data-reads]"), known = models.get(svg);
    if (known && known.first === first) return known.panels;
    const panels = svg.dataset.axes ? JSON.parse(svg.dataset.axes) : [];
    for (const panel of panels) Object.assign(panel, { curves: [], marks: [] });
    for (const group of svg.querySelectorAll("[data-reads]")) {
      const axes = group.closest("[data-axes]:not(svg)"), panel = panels[axes ? Number(axes.dataset.axes) : 0];
      const row = Number(group.dataset.row);
      const paths = group.matches("path") ? [group] : group.querySelectorAll("path");
      for (const path of paths) {
        if (!path.closest("defs")) panel.curves.push(...pieces(path.getAttribute("d") || "").map((points) => ({ row, points })));
      }
      for (const use of group.querySelectorAll("use")) {
        panel.marks.push({ row, points: [[Number(use.getAttribute("x")), Number(use.getAttribute("y"))]] });
      }
    }
    for (const panel of panels) if (!panel.curves.length) panel.curves = panel.marks;
    models.set(svg, { first, panels });
    return panels;
  }

  // The pieces of a path of straight lines, without verticals.
  function pieces(d) {
    return d.split("M").slice(1).map((piece) => {
      const numbers = piece.match(/-?\d+(\.\d+)?(e-?\d+)?/g).map(Number);
      return numbers.reduce((points, value, k) => {
        if (k % 2) points.push([numbers[k - 1], value]);
        return points;
      }, []);
    }).filter((points) => points.length === 1 || points.at(-1)[0] - points[0][0] > 0.5);
  }

  // The height of a curve at a place across; of names, and of markers, that of the nearest point.
  function at(panel, { row, points }, x) {
    if (panel.x.names || panel.curves === panel.marks) {
      return points.reduce((best, [px, py]) => {
        return best && Math.abs(best.x - x) <= Math.abs(px - x) ? best : { row, x: px, y: py };
      }, null);
    }
    if (x < points[0][0] - 0.5 || x > points.at(-1)[0] + 0.5) return null;
    const right = points.findIndex(([px]) => px >= x);
    if (right < 1) return { row, x: points.at(right)[0], y: points.at(right)[1] };
    const [[x0, y0], [x1, y1]] = [points[right - 1], points[right]];
    return { row, x, y: y0 + ((y1 - y0) * (x - x0)) / (x1 - x0 || 1) };
  }

  function candidates(panel, x) {
    const chosen = panel.curves.some(({ row }) => row === selected);
    return panel.curves.filter(({ row }) => !chosen || row === selected).map((curve) => at(panel, curve, x)).filter(Boolean);
  }

  // ---- words --------------------------------------------------------------------------------------------------------

  function value(axis, from, to, place) {
    const share = (place - from) / (to - from), [low, high] = axis.ends;
    return axis.log ? low * (high / low) ** share : low + (high - low) * share;
  }

  function written(axis, number) {
    if (axis.names) {
      const near = axis.names.reduce((a, b) => (Math.abs(a[0] - number) <= Math.abs(b[0] - number) ? a : b));
      return near[1];
    }
    if (axis.zero && number < axis.zero) return "0";
    const scaled = axis.percent ? 100 * number : number;
    const text = axis.log || Math.abs(scaled) >= 10
      ? Number(scaled.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 6 })
      : scaled.toFixed(3).replace(/^-0\.000$/, "0.000");
    return axis.percent ? `${text} %` : text;
  }

  function words(panel, { row, x, y }) {
    const [left, top, right, bottom] = panel.box;
    const pairs = [[panel.y, value(panel.y, bottom, top, y)], [panel.x, value(panel.x, left, right, x)]];
    const lines = pairs.filter(([axis]) => axis.label || axis.names)
      .map(([axis, number]) => (axis.label ? `${axis.label}: ` : "") + written(axis, number));
    return [names[row] || "", panel.title, ...lines].filter(Boolean);
  }

  // ---- showing ------------------------------------------------------------------------------------------------------

  let shown = null; // { svg, panel, found, box }

  function show(svg, panel, found, aloud) {
    let dot = svg.querySelector(".reading");
    if (!dot) {
      dot = document.createElementNS(svg.namespaceURI, "circle");
      dot.setAttribute("class", "reading");
      dot.setAttribute("r", "5");
      svg.append(dot);
    }
    dot.setAttribute("cx", found.x);
    dot.setAttribute("cy", found.y);
    if (shown && shown.svg !== svg) clear();
    shown = { svg, panel, found };
    const [name, ...lines] = words(panel, found);
    const bold = document.createElement("b");
    bold.textContent = name;
    readout.replaceChildren(bold, ...lines.map((line) => {
      const div = document.createElement("div");
      div.textContent = line;
      return div;
    }));
    readout.setAttribute("aria-live", aloud ? "polite" : "off");
    readout.hidden = false;
    const box = (shown.box = dot.getBoundingClientRect()), { offsetWidth: width, offsetHeight: height } = readout;
    const wide = document.documentElement.clientWidth;
    let left = box.right + 10, top = box.top - height / 2; // beside the point, or above it where there is no room
    if (left + width > wide) left = box.left - width - 10;
    if (left < 4) [left, top] = [Math.min(box.left, wide - width - 4), box.top - height - 10];
    readout.style.left = `${Math.max(4, left)}px`;
    readout.style.top = `${Math.max(4, Math.min(top, innerHeight - height - 4))}px`;
  }

  function clear() {
    if (!shown) return;
    const dot = shown.svg.querySelector(".reading");
    if (dot) dot.remove();
    shown = null;
    readout.hidden = true;
  }

  function underPointer(event) {
    const svg = event.target.closest && event.target.closest(".plot svg[data-axes]");
    if (!svg) return clear();
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const panel = modelOf(svg).find(({ box: [left, top, right, bottom] }) => {
      return point.x >= left - 4 && point.x <= right + 4 && point.y >= top - 4 && point.y <= bottom + 4;
    });
    const found = panel ? candidates(panel, point.x) : [];
    if (!found.length) return clear();
    const far = ({ x, y }) => Math.hypot((x - point.x) * (panel.curves === panel.marks ? 1 : 0.5), y - point.y);
    return show(svg, panel, found.reduce((a, b) => (far(a) <= far(b) ? a : b)), false);
  }

  let moved = null;
  addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    if (!moved) requestAnimationFrame(() => { underPointer(moved); moved = null; });
    moved = event;
  }, { passive: true });
  addEventListener("pointerup", (event) => {
    if (event.pointerType === "touch") underPointer(event);
  });
  // The event of a scroll by which the focus brought a plot into view comes after the key that is pressed at once.
  addEventListener("scroll", () => {
    if (!shown) return;
    const { left, top } = shown.svg.querySelector(".reading").getBoundingClientRect();
    if (left !== shown.box.left || top !== shown.box.top) clear();
  }, { passive: true, capture: true });
  addEventListener("beforeprint", clear);

  // ---- keys ---------------------------------------------------------------------------------------------------------

  // The places that the keys step through: names, markers, or fiftieths of the width.
  function stations(panel) {
    const across = panel.curves.flatMap(({ points }) => points.map(([x]) => x)).sort((a, b) => a - b);
    if (!panel.x.names && panel.curves !== panel.marks) {
      const [low, high] = [across[0], across.at(-1)];
      return Array.from({ length: 51 }, (_, k) => low + ((high - low) * k) / 50);
    }
    if (panel.x.names) {
      const [left, , right] = panel.box, [low, high] = panel.x.ends;
      return panel.x.names.map(([tick]) => left + ((tick - low) / (high - low)) * (right - left));
    }
    return [...new Set(across)];
  }

  function step(svg, key) {
    const panels = modelOf(svg).filter(({ curves }) => curves.length);
    if (!panels.length) return false;
    if (!shown || shown.svg !== svg) {
      const x = stations(panels[0])[0], [found] = candidates(panels[0], x);
      if (found) show(svg, panels[0], found, true);
      return true;
    }
    const { panel, found } = shown;
    if (key === "ArrowUp" || key === "ArrowDown") {
      const order = candidates(panel, found.x).sort((a, b) => a.y - b.y || a.row - b.row);
      const here = order.findIndex((one) => one.row === found.row);
      const next = order[here + (key === "ArrowUp" ? -1 : 1)];
      if (next) show(svg, panel, next, true);
      return true;
    }
    const forth = key === "ArrowRight", number = panels.indexOf(panel);
    const ahead = stations(panel).filter((x) => (forth ? x > found.x + 1 : x < found.x - 1));
    // Names: what is dodged a little is still at its own.
    const near = panel.x.names ? ahead.filter((x) => Math.abs(x - found.x) > 0.5 * gap(panel)) : ahead;
    let to = panel, x = forth ? near[0] : near.at(-1);
    if (x === undefined && panels[number + (forth ? 1 : -1)]) {
      to = panels[number + (forth ? 1 : -1)];
      x = stations(to).at(forth ? 0 : -1);
    }
    if (x === undefined) return true;
    const there = candidates(to, x), mine = there.find(({ row }) => row === found.row) || there[0];
    if (mine) show(svg, to, mine, true);
    return true;
  }

  function gap(panel) {
    const places = stations(panel);
    return places.length > 1 ? places[1] - places[0] : 1;
  }

  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape") {
      // An open dialog takes it for itself.
      if (document.querySelector("dialog[open], [role=dialog]:not([hidden])")) return;
      if (shown) clear();
      else if (selected !== null) select(null);
      return;
    }
    const key = event.target.closest && event.target.closest("[data-key]");
    if (key) return alongLegend(event, key);
    if (!/^Arrow/.test(event.key) || !event.target.matches(".plot .scroll")) return;
    const svg = event.target.querySelector("svg[data-axes]");
    if (svg && step(svg, event.key)) event.preventDefault();
  });
  addEventListener("focusout", clear);

  // ---- picking a method out -----------------------------------------------------------------------------------------

  let selected = null;
  const rules = document.head.appendChild(document.createElement("style"));

  function select(row) {
    selected = row;
    rules.textContent = row === null ? "" : `
      .plot [data-row]:not([data-row="${row}"]), .plot [data-key]:not([data-key="${row}"]) { opacity: .16; }
      tr[data-of="${row}"] > * { background-color: var(--shade); }
      tr[data-of="${row}"] > th { box-shadow: inset 3px 0 var(--accent); }`;
    press(document);
    clear();
  }

  addEventListener("rowshidden", ({ detail }) => { if (detail.includes(selected)) select(null); });

  function press(root) {
    for (const key of root.querySelectorAll("[data-key][aria-pressed]")) {
      key.setAttribute("aria-pressed", String(Number(key.dataset.key) === selected));
    }
  }

  // The words of a legend become buttons: one stop of the tab key, arrows move on.
  function adopt(root) {
    for (const svg of root.querySelectorAll(".plot svg")) {
      const keys = [...svg.querySelectorAll("[data-key]")];
      if (!keys.length && !svg.dataset.axes) continue;
      svg.setAttribute("role", "group");
      const box = svg.closest(".scroll");
      if (box && svg.dataset.axes) box.setAttribute("aria-label", "Plot: arrow keys read its values");
      keys.filter((key) => key.querySelector("text")).forEach((key, place) => {
        key.setAttribute("role", "button");
        key.setAttribute("aria-label", names[key.dataset.key]);
        key.setAttribute("aria-pressed", "false");
        key.setAttribute("tabindex", place ? "-1" : "0");
      });
    }
    press(root);
  }

  function alongLegend(event, key) {
    if (event.key === "Enter" || event.key === " ") {
      if (key.matches("button")) return; // clicks by itself
      event.preventDefault();
      select(Number(key.dataset.key) === selected ? null : Number(key.dataset.key));
    }
    const others = [...key.closest("svg, ul").querySelectorAll("[data-key][aria-pressed]")];
    const way = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const next = way && others[others.indexOf(key) + way];
    if (!way) return;
    event.preventDefault();
    if (!next) return;
    key.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  }

  addEventListener("click", (event) => {
    const key = event.target.closest(".plot [data-key]");
    if (key) select(Number(key.dataset.key) === selected ? null : Number(key.dataset.key));
  });
  addEventListener("toggle", (event) => {
    if (event.target.open) setTimeout(() => adopt(event.target));
  }, true);
  for (const legend of document.querySelectorAll(".pod .legend")) {
    new MutationObserver(() => press(legend)).observe(legend, { childList: true });
  }
  adopt(document);
})();
