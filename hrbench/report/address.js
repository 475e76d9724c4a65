"use strict";

// What the address keeps behind its "#": an anchor, if any, and what the reader has chosen, by name:
// #screw&alarms=5&view=tiled-512-64
const address = (() => {
  const decode = (text) => {
    try {
      return decodeURIComponent(text.replaceAll("+", " "));
    } catch {
      return text;
    }
  };
  const encode = (text) => encodeURIComponent(text).replaceAll("%20", "+").replace(/%(3A|40|2C)/g, decodeURIComponent);

  function parse(hash) {
    const chosen = {};
    let anchor = "";
    for (const part of hash.replace(/^#/, "").split("&")) {
      const at = part.indexOf("=");
      if (at > 0) chosen[decode(part.slice(0, at))] = decode(part.slice(at + 1));
      else if (part) anchor = decode(part);
    }
    return { anchor, chosen };
  }

  function write({ anchor, chosen }) {
    const pairs = Object.entries(chosen).filter(([, value]) => value !== "" && value !== null);
    return "#" + [anchor && encode(anchor), ...pairs.map(([key, value]) => `${key}=${encode(value)}`)]
      .filter(Boolean).join("&");
  }

  return { parse, write };
})();

if (typeof module !== "undefined") module.exports = address;

if (typeof document !== "undefined") (() => {
  const listeners = [];
  let now = address.parse(location.hash);

  // Choices are steps back in the history if `step`; a page inside another one may not be allowed to write any.
  function put(step) {
    try {
      const there = address.write(now);
      const url = there === "#" ? location.href.replace(/#.*/, "") : there;
      history[step ? "pushState" : "replaceState"]({ own: true }, "", url);
    } catch {
      // the page works without
    }
  }

  address.chosen = () => now.chosen;
  address.anchor = () => now.anchor;
  address.choose = (changes, step = true) => {
    const chosen = { ...now.chosen, ...changes };
    if (address.write({ ...now, chosen }) === address.write(now)) return;
    now = { ...now, chosen };
    put(step);
  };
  // Called with what is chosen, now and whenever the address brings something else.
  address.follow = (listener) => {
    listeners.push(listener);
    listener(now.chosen);
  };

  addEventListener("hashchange", () => {
    const there = address.parse(location.hash);
    const link = !(history.state && history.state.own) && !Object.keys(there.chosen).length;
    now = link ? { ...there, chosen: now.chosen } : there; // a link leads to a place, and leaves what is chosen
    if (link) put(false);
    else for (const listener of listeners) listener(now.chosen);
  });
  put(false);
})();
