"use strict";

// A picture of the grid, large: move the map's opacity, zoom to single pixels, go on with the arrows, leave with Escape.
(() => {
  const FINEST = 8; // native pixels that the stage shows at least
  const panels = () => [...document.querySelectorAll("button.panel")].filter((p) => p.offsetParent !== null);
  let dialog = null, at = null, svg = null, view = null;

  const make = (name, attributes, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };

  const part = (name) => dialog.querySelector(`.${name}`);
  const box = (text) => text.split(" ").map(Number);

  function build() {
    const button = (name, text, label) => make("button", { type: "button", class: name, "aria-label": label }, text);
    dialog = make("dialog", { class: "lightbox", "aria-label": "Picture" },
      make("header", {}, make("p", { class: "title", role: "status" }), button("close", "Close", "Close")),
      make("div", { class: "stage" }),
      make("div", { class: "tools" },
        button("before", "←", "Picture before"), button("after", "→", "Next picture"),
        button("near", "Defect", "Zoom to the defect"), button("far", "Around it", "All that is kept of the photograph"),
        button("out", "−", "Zoom out"), button("in", "+", "Zoom in"),
        make("label", { class: "mixing" }, "Map", make("input", { type: "range", min: 0, max: 100, value: 100, class: "mix" })),
        make("label", {}, make("input", { type: "checkbox", checked: "", class: "lines" }), "Outlines"),
        make("label", {}, make("input", { type: "checkbox", class: "pixels" }), "Pixel grid"),
        make("span", { class: "scale" })));
    document.body.append(dialog);
    part("close").addEventListener("click", () => dialog.close());
    part("before").addEventListener("click", () => step(-1));
    part("after").addEventListener("click", () => step(1));
    part("near").addEventListener("click", () => look(box(at.querySelector("svg").getAttribute("viewBox"))));
    part("far").addEventListener("click", () => look(box(at.dataset.window)));
    part("in").addEventListener("click", () => zoom(0.7));
    part("out").addEventListener("click", () => zoom(1 / 0.7));
    for (const name of ["mix", "lines", "pixels"]) part(name).addEventListener("input", draw);
    dialog.addEventListener("keydown", onKey);
    dialog.addEventListener("close", () => at && at.focus());
    part("stage").addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom(event.deltaY < 0 ? 0.85 : 1 / 0.85);
    }, { passive: false });
    part("stage").addEventListener("pointerdown", drag);
    addEventListener("resize", () => dialog.open && draw());
  }

  function onKey(event) {
    const slides = event.target.type === "range";
    const keys = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), "+": () => zoom(0.7), "-": () => zoom(1 / 0.7) };
    if (!keys[event.key] || (slides && event.key.startsWith("Arrow"))) return;
    event.preventDefault();
    keys[event.key]();
  }

  function step(by) {
    const all = panels();
    show(all[(all.indexOf(at) + by + all.length) % all.length]);
  }

  function show(panel) {
    at = panel;
    svg = panel.querySelector("svg").cloneNode(true);
    svg.setAttribute("preserveAspectRatio", "xMidYMid meet");
    for (const element of svg.querySelectorAll("defs")) element.remove(); // the page has them
    const grid = document.createElementNS(svg.namespaceURI, "path");
    grid.setAttribute("class", "grid");
    grid.setAttribute("vector-effect", "non-scaling-stroke");
    svg.append(grid);
    part("stage").replaceChildren(svg);
    part("title").textContent = panel.getAttribute("aria-label");
    part("mixing").hidden = !svg.querySelector(".map");
    look(box(svg.getAttribute("viewBox")));
  }

  function look(wanted) {
    view = wanted;
    draw();
  }

  function zoom(factor) {
    const [x, y, width, height] = view, [left, top, most, tall] = box(at.dataset.window);
    const to = Math.max(FINEST / Math.min(width, height), Math.min(factor, Math.max(most / width, tall / height)));
    const keep = (centre, side, start, all) =>
      side >= all ? start - (side - all) / 2 : Math.max(start, Math.min(centre - side / 2, start + all - side));
    look([keep(x + width / 2, width * to, left, most), keep(y + height / 2, height * to, top, tall), width * to, height * to]);
  }

  function drag(down) {
    const stage = part("stage"), [x, y, width, height] = view, scale = pixel();
    const move = (event) => look([x - (event.clientX - down.clientX) / scale, y - (event.clientY - down.clientY) / scale, width, height]);
    stage.setPointerCapture(down.pointerId);
    stage.addEventListener("pointermove", move);
    for (const end of ["pointerup", "pointercancel"]) {
      stage.addEventListener(end, () => stage.removeEventListener("pointermove", move), { once: true });
    }
  }

  // How many pixels of the screen a native one takes.
  const pixel = () => Math.min(svg.clientWidth / view[2], svg.clientHeight / view[3]);

  function draw() {
    const [x, y, width, height] = view;
    svg.setAttribute("viewBox", view.join(" "));
    const map = svg.querySelector(".map"), wide = pixel(), pixels = part("pixels").checked;
    if (map) map.style.opacity = part("mix").value / 100;
    for (const edge of svg.querySelectorAll(".edge")) edge.style.display = part("lines").checked ? "" : "none";
    let lines = "";
    if (pixels && wide >= 4) { // finer it would hide the picture
      const seen = (start, side, length, first, all) => {
        const middle = start + side / 2, half = length / wide / 2;
        return [Math.max(first, Math.floor(middle - half)), Math.min(first + all, Math.ceil(middle + half))];
      };
      const [left, top, most, tall] = box(at.dataset.window);
      const [x0, x1] = seen(x, width, svg.clientWidth, left, most), [y0, y1] = seen(y, height, svg.clientHeight, top, tall);
      for (let k = x0; k <= x1; k++) lines += `M${k} ${y0}V${y1}`;
      for (let k = y0; k <= y1; k++) lines += `M${x0} ${k}H${x1}`;
    }
    svg.querySelector(".grid").setAttribute("d", lines);
    part("scale").textContent = `${wide.toFixed(1)} : 1` + (pixels && wide < 4 ? ", zoom in for the grid" : "");
    const same = (other) => box(other).every((value, k) => Math.abs(value - view[k]) < 0.01);
    part("near").setAttribute("aria-pressed", same(at.querySelector("svg").getAttribute("viewBox")));
    part("far").setAttribute("aria-pressed", same(at.dataset.window));
  }

  document.addEventListener("click", (event) => {
    const panel = event.target.closest && event.target.closest("button.panel");
    if (!panel) return;
    if (!dialog) build();
    dialog.showModal();
    show(panel);
  });
})();
