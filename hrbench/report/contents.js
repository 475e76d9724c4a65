"use strict";

// The bar with the sections: mark where the reader is, and fold it on a phone.
(() => {
  const bar = document.querySelector("nav.contents"), button = bar.querySelector("button");
  const links = [...bar.querySelectorAll("a")];
  const places = links.map((link) => document.getElementById(decodeURIComponent(link.hash.slice(1))));
  bar.classList.add("live");
  button.hidden = false;

  function fold(open) {
    bar.classList.toggle("unfolded", open);
    button.setAttribute("aria-expanded", String(open));
  }

  // The last section that begins above the middle of what is seen, of those that no filter hides; or else the first.
  function mark() {
    const line = innerHeight / 2, there = [...places.keys()].filter((k) => places[k] && places[k].getClientRects().length);
    if (!there.length) return;
    const at = there.filter((k) => places[k].getBoundingClientRect().top <= line).at(-1) ?? there[0];
    links.forEach((link, k) => {
      if (k === at) link.setAttribute("aria-current", "location");
      else link.removeAttribute("aria-current");
    });
    const outer = links[at].closest(".contents > ol > li");
    for (const item of bar.querySelectorAll(":scope > ol > li")) item.classList.toggle("open", item === outer);
    bar.querySelector(".here").textContent = links[at].textContent;
  }

  let asked = false;
  function later() {
    if (!asked) requestAnimationFrame(() => { asked = false; mark(); });
    asked = true;
  }

  button.addEventListener("click", () => fold(button.getAttribute("aria-expanded") !== "true"));
  bar.addEventListener("click", (event) => { if (event.target.closest("a")) fold(false); });
  bar.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !bar.classList.contains("unfolded")) return;
    fold(false);
    button.focus();
  });
  addEventListener("scroll", later, { passive: true });
  new ResizeObserver(later).observe(document.body); // the window, filters, sections that open
  // What sticks below the bar, and jumps, leave room for it.
  new ResizeObserver(() => {
    if (!bar.classList.contains("unfolded")) {
      document.documentElement.style.setProperty("--bar-height", `${bar.offsetHeight}px`);
    }
  }).observe(bar);
  mark();
})();
