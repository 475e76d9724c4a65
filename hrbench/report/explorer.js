"use strict";

// Filter the page's rows, rank them by any metric, compare two of them. Tests run the arithmetic in node.
const explorer = (() => {
  const words = typeof operating === "undefined" ? require("./operating.js") : operating;

  // A number as its metric is written: as Python's ".3f" and ".2g", or a cost with three digits.
  function number(value, form) {
    if (value === null) return "–";
    if (form === "cost") {
      return value <= 0 ? "0" : words.fixed(value, Math.max(0, 2 - Math.floor(Math.log10(value))));
    }
    const [, digits, kind] = /^\.(\d)([fg])$/.exec(form);
    if (kind === "f") return words.fixed(value, Number(digits));
    if (value !== 0 && Math.abs(value) < 1e-4) {
      return value.toExponential(digits - 1).replace(/\.?0*e/, "e").replace(/e([+-])(\d)$/, "e$10$2");
    }
    return String(Number(value.toPrecision(Number(digits))));
  }

  const signed = (value) => (value < 0 ? "-" : "+") + words.fixed(Math.abs(value), 3);

  // Which rows and parts (datasets, categories) are hidden. A word that rows have narrows them down; another one that
  // parts are called by shows these parts only; one that nothing has hides all rows. A dataset without any row left is
  // hidden, too.
  function filter(rows, parts, chosen) {
    const chips = Object.entries(chosen).filter(([facet, value]) => value && rows.some((row) => facet in row.chips));
    const picked = (row) => chips.every(([facet, value]) => value.split(",").includes(row.chips[facet]));
    const asked = (chosen.q || "").toLowerCase().split(/\s+/).filter(Boolean);
    const ofRows = [], named = { dataset: new Set(), category: new Set() };
    for (const word of asked) {
      const hits = parts.filter((part) => part.name.toLowerCase().includes(word));
      if (rows.some((row) => row.text.includes(word)) || !hits.length) ofRows.push(word);
      else for (const part of hits) named[part.kind].add(part.id);
    }
    const datasets = (chosen.dataset || "").split(",").filter(Boolean);
    const hidden = rows.filter((row) => !picked(row) || !ofRows.every((word) => row.text.includes(word)))
      .map((row) => row.number);
    return {
      rows: hidden,
      parts: parts.filter((part) => (named[part.kind].size && !named[part.kind].has(part.id)) ||
        (part.kind === "dataset" && ((datasets.length && !datasets.includes(part.slug)) ||
          part.rows.every((number) => hidden.includes(number))))).map((part) => part.id),
    };
  }

  // Metric, limit and size of a key; the nearest that there is.
  function choice(data, key) {
    const known = ({ key: of, limits, sizes }) => limits.flatMap(([limit]) => sizes.map(([size]) => of + limit + size));
    const metric = data.metrics.find((one) => known(one).includes(key));
    if (!metric || !(key in data.values)) return key === data.start ? null : choice(data, data.start);
    const [limit] = metric.limits.find(([one]) => metric.sizes.some(([size]) => metric.key + one + size === key));
    return { key, metric, limit, size: key.slice((metric.key + limit).length) };
  }

  // The rows by a number, the best first: only those that have it wherever any comparable one has it get a rank.
  function ranking(data, key, metric) {
    const { mean, low, high, each } = data.values[key];
    const sign = metric.least ? 1 : -1, fair = data.rows.map((row, at) => row.ranked && mean[at] !== null);
    const needed = data.categories.map((_, k) => each.some((line, at) => fair[at] && line[k] !== null));
    const lines = data.rows.map((row, at) => ({
      at, number: row.number, value: mean[at], low: low ? low[at] : null, high: high ? high[at] : null, each: each[at],
      lacking: mean[at] === null ? 0 : each[at].filter((value) => value === null).length,
      ranked: fair[at] && needed.every((need, k) => !need || each[at][k] !== null),
      text: number(mean[at], metric.form),
    }));
    lines.sort((a, b) => b.ranked - a.ranked || (a.value === null) - (b.value === null) ||
      sign * (a.value - b.value) || a.at - b.at);
    const prints = lines.filter((line) => line.ranked).map((line) => line.text);
    return lines.map((line) => ({ ...line, rank: line.ranked ? 1 + prints.indexOf(line.text) : null }));
  }

  // The paired difference of two rows in one line of what is kept; null where it is not.
  function paired(data, a, b, key) {
    const pairs = data.pairs, k = pairs ? pairs.lines.findIndex(([one]) => one === key) : -1;
    const i = pairs ? pairs.rows.indexOf(a) : -1, j = pairs ? pairs.rows.indexOf(b) : -1;
    if (k < 0 || i < 0 || j < 0 || i === j) return null;
    const at = (Math.max(i, j) * (Math.max(i, j) - 1)) / 2 + Math.min(i, j);
    const [value, low, high, share] = [pairs.difference, pairs.low, pairs.high, pairs.share].map((list) => list[at][k]);
    const why = low !== null ? "" : pairs.units[k] < pairs.fewest ? `too few: ${pairs.units[k]}` : "none can be given";
    if (i > j) return { value, low, high, share, why };
    const turn = (end) => (end === null ? null : -end);
    return { value: turn(value), low: turn(high), high: turn(low), share: share === null ? null : 1 - share, why };
  }

  const SIZES = ["", "_tiny", "_small", "_medium", "_large"];

  // All lines of the comparison of two rows: at the headline and at equal false alarms, all defects and by size.
  function compare(data, a, b) {
    const first = /^aupro@[\d.]+/.exec(data.start), keys = first ? SIZES.map((size) => first[0] + size) : [];
    const more = (data.pairs ? data.pairs.lines : []).map(([key]) => key).filter((key) => !keys.includes(key));
    const at = (n) => data.rows.findIndex((row) => row.number === n);
    return [...keys, ...more].filter((key) => key in data.values).map((key) => {
      const { metric, limit, size } = choice(data, key), { mean } = data.values[key];
      const [x, y] = [mean[at(a)], mean[at(b)]];
      const known = paired(data, a, b, key);
      const value = known && known.value !== null ? known.value : x === null || y === null ? null : x - y;
      const label = (list, slug) => list.find(([one]) => one === slug)[1];
      const sized = `${size ? label(metric.sizes, size) : "all"} defects`;
      const where = [metric.name, limit && label(metric.limits, limit), metric.sizes.length > 1 && sized];
      return { key, name: where.filter(Boolean).join(", "), x, y, form: metric.form, least: metric.least, low: null,
        high: null, share: null, why: "no draws", ...known, value };
    });
  }

  // The interval of a line, or why there is none.
  const range = ({ low, high, why }) => why || `${signed(low)} to ${signed(high)}`;

  // What the first line comes to, in one sentence.
  function sentence(a, b, line) {
    if (!line || line.value === null) return `${a} and ${b} cannot be compared.`;
    const { value, low, high, least } = line, start = `${line.name}: `;
    if (low === null) return `${start}${a} minus ${b} is ${signed(value)}; which is better cannot be told (${line.why}).`;
    const ends = range(line);
    if (low <= 0 && high >= 0) return `${start}no difference shown between ${a} and ${b} (${ends}).`;
    const better = value > 0 !== least;
    return `${start}${better ? a : b} is better than ${better ? b : a} (${a} minus ${b}: ${ends}).`;
  }

  return { number, signed, filter, choice, ranking, paired, compare, range, sentence };
})();

if (typeof module !== "undefined") module.exports = explorer;

// ---- the page -----------------------------------------------------------------------------------------------------

if (typeof document !== "undefined") (() => {
  const bar = document.querySelector(".explore");
  if (!bar) return;
  const { rows, parts } = JSON.parse(document.querySelector("script.explorer").textContent);
  const bySlug = new Map(rows.map((row) => [row.slug, row])), byNumber = new Map(rows.map((row) => [row.number, row]));

  // ---- search and chips ---------------------------------------------------------------------------------------------

  const sheet = document.head.appendChild(document.createElement("style"));
  const search = bar.querySelector("input"), note = document.querySelector(".filtered");
  const chips = [...bar.querySelectorAll(".chip")];
  const facetOf = (chip) => chip.closest("fieldset").dataset.facet;

  function showRows(chosen) {
    for (const chip of chips) {
      const on = (chosen[facetOf(chip)] || "").split(",").includes(chip.dataset.value);
      chip.setAttribute("aria-pressed", String(on));
    }
    if (search.value !== (chosen.q || "") && document.activeElement !== search) search.value = chosen.q || "";
    const hidden = explorer.filter(rows, parts, chosen);
    const ofRow = (n) => ["of", "row", "key"].map((name) => `[data-${name}="${n}"]`); // tables and lists; plots
    const selectors = [...hidden.rows.flatMap(ofRow), ...hidden.parts.map((id) => `[data-part="${id}"]`)];
    const style = selectors.length ? `${selectors.join()}{display:none!important}` : "";
    if (sheet.textContent !== style) {
      sheet.textContent = style;
      dispatchEvent(new CustomEvent("rowshidden", { detail: hidden.rows }));
    }
    const there = parts.some((part) => part.kind === "dataset" && !hidden.parts.includes(part.id));
    const left = there ? rows.length - hidden.rows.length : 0;
    const text = selectors.length ? `${left} of ${rows.length} rows` : `${rows.length} rows`;
    bar.querySelector(".shown").textContent = left ? text : `nothing matches, 0 of ${rows.length} rows`;
    note.firstElementChild.textContent = `${text} shown; ranks are those among all`;
    note.hidden = !selectors.length;
    bar.querySelector(".all").hidden = !selectors.length;
  }

  bar.addEventListener("click", ({ target }) => {
    const chip = target.closest(".chip");
    if (!chip) return;
    const facet = facetOf(chip), on = (address.chosen()[facet] || "").split(",").filter(Boolean);
    const value = chip.dataset.value;
    address.choose({ [facet]: (on.includes(value) ? on.filter((one) => one !== value) : [...on, value]).join() });
    showRows(address.chosen());
  });
  search.addEventListener("input", () => {
    address.choose({ q: search.value.trim() }, false);
    showRows(address.chosen());
  });
  bar.addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll(".all")) {
    button.addEventListener("click", () => {
      search.value = "";
      address.choose(Object.fromEntries(["q", ...chips.map(facetOf)].map((name) => [name, ""])));
      showRows(address.chosen());
      search.focus();
    });
  }
  bar.hidden = false;

  // ---- rank by any metric, compare two ------------------------------------------------------------------------------

  const boards = [...document.querySelectorAll(".ranking")].map((root) => {
    const data = JSON.parse(root.querySelector(".numbers").textContent);
    const picks = Object.fromEntries([...root.querySelectorAll("select")].map((one) => [one.dataset.choose, one]));
    for (const { key, name } of data.metrics) make(picks.metric, "option", name, { value: key });
    const dataset = root.closest("[data-part]"), heat = dataset.querySelector("table.heat");
    return { root, data, picks, heat, key: null, ticks: "" };
  });

  function fill(select, options, value) {
    select.replaceChildren();
    for (const [slug, name] of options) make(select, "option", name, { value: slug });
    select.value = value;
    select.closest("label").hidden = options.length < 2;
  }

  const WIDTH = 260, HEIGHT = 24, EDGE = 7;

  function strip(cell, line, scale, metric, data) {
    if (line.value === null) return;
    const shown = line.each.filter((value) => value !== null), several = data.categories.length > 1;
    const over = several ? `, ${shown.length} categories` : "";
    const label = line.text + over;
    const svg = make(cell, "svg", "", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
    const x = (value) => (EDGE + (WIDTH - 2 * EDGE) * scale(value)).toFixed(1), middle = HEIGHT / 2;
    make(svg, "path", "", { d: `M0 ${middle}H${WIDTH}`, stroke: "var(--line)" });
    const colour = byNumber.get(line.number).colour;
    if (line.low !== null) {
      make(svg, "path", "", { d: `M${x(line.low)} ${middle}H${x(line.high)}`, stroke: colour, "stroke-width": 3 });
    }
    if (several) {
      line.each.forEach((value, k) => {
        if (value === null) return;
        const dot = make(svg, "circle", "", { cx: x(value), cy: middle, r: 3, fill: colour, "fill-opacity": 0.45 });
        make(dot, "title", `${data.categories[k].name}: ${explorer.number(value, metric.form)}`);
      });
    }
    make(svg, "path", "", { d: `M${x(line.value)} 3V${HEIGHT - 3}`, stroke: colour, "stroke-width": 3 });
  }

  function rank(board, { key, metric, limit, size }) {
    const { root, data, picks } = board, lines = explorer.ranking(data, key, metric);
    picks.metric.value = metric.key;
    fill(picks.limit, metric.limits, limit);
    fill(picks.size, metric.sizes, size);
    const mean = data.categories.length > 1 ? "Mean over the categories; dots: the categories. " : "";
    const bars = lines.some((line) => line.low !== null)
      ? `Bar: ${100 * data.level} % interval.` : "No interval is kept for this number.";
    root.querySelector(".meaning").textContent =
      `${metric.title}${metric.least ? " (less is better)" : ""}. ${mean}${bars}`;
    const all = lines.flatMap((line) => [line.value, line.low, line.high, ...(line.value === null ? [] : line.each)])
      .filter((value) => value !== null);
    const from = Math.min(...all), to = Math.max(...all), scale = (v) => (to > from ? (v - from) / (to - from) : 0.5);
    root.querySelector("th.number").textContent = metric.name.split(",")[0];
    const ends = root.querySelector(".strips");
    ends.replaceChildren();
    const span = make(ends, "span");
    for (const end of [from, to]) make(span, "b", explorer.number(end, metric.form));
    const body = document.createElement("tbody"), dataset = root.closest("[data-part]");
    for (const line of lines) {
      const { name, slug } = byNumber.get(line.number);
      const tr = make(body, "tr", "", { "data-of": line.number });
      make(tr, "td", line.rank === null ? "–" : String(line.rank), { class: "rank" });
      const tick = make(make(tr, "td", "", { class: "text" }), "input", "",
        { type: "checkbox", value: slug, "aria-label": `Compare ${name}` });
      tick.checked = board.ticks.split(",").includes(slug);
      const head = make(tr, "th", "", { scope: "row", class: "text method" });
      make(head, "a", name, { href: `#${dataset.querySelector(`article[data-of="${line.number}"]`).id}` });
      const value = make(tr, "td", "", { class: line.value === null ? "number none" : "number" });
      make(value, "span", line.text);
      if (line.lacking) make(value, "sup", "°", { title: `${line.lacking} categories without a value` });
      const ends = [line.low, line.high].map((end) => explorer.number(end, metric.form));
      make(tr, "td", line.low === null ? "–" : ends.join("–"), { class: line.low === null ? "text none" : "text" });
      strip(make(tr, "td", "", { class: "text strip" }), line, scale, metric, data);
    }
    root.querySelector("tbody").replaceWith(body);
    hints.adopt(body.parentElement);
  }

  function warm({ heat, data }, { key, metric }) {
    if (!heat) return;
    const { each } = data.values[key];
    const all = each.flat().filter((value) => value !== null), from = Math.min(...all), to = Math.max(...all);
    const what = metric.name + (key === metric.key ? "" : ` (${key.slice(metric.key.length + 1).replace("_", ", ")})`);
    heat.caption.textContent = `${what} in each category; the stronger the shade, the better`;
    const lines = new Map(data.rows.map((row, at) => [String(row.number), each[at]]));
    for (const tr of heat.tBodies[0].rows) {
      lines.get(tr.dataset.of).forEach((value, k) => {
        const td = tr.cells[k + 1], place = to > from ? (value - from) / (to - from) : 0.5;
        td.textContent = explorer.number(value, metric.form);
        if (value === null) td.removeAttribute("style");
        else td.style.setProperty("--heat", `${(100 * (metric.least ? 1 - place : place)).toFixed(0)}%`);
      });
    }
  }

  function two(board) {
    const { root, data } = board, place = root.querySelector(".two");
    const of = board.ticks.split(",").map((slug) => bySlug.get(slug))
      .filter((row) => row && data.rows.some((one) => one.number === row.number));
    for (const tick of root.querySelectorAll("input")) tick.checked = of.some((row) => row.slug === tick.value);
    place.replaceChildren();
    if (!of.length) return;
    if (of.length === 1) {
      make(place, "p", `Tick another row to compare ${of[0].name} with.`, { class: "key" });
      return;
    }
    const [a, b] = of, lines = explorer.compare(data, a.number, b.number);
    make(place, "h4", `${a.name} minus ${b.name}`);
    const asked = lines.find((line) => line.key === board.key);
    const first = lines.find((line) => line.low !== null) || lines[0];
    for (const line of new Set([asked || first, first])) make(place, "p", explorer.sentence(a.name, b.name, line));
    const region = { class: "scroll", tabindex: 0, role: "region", "aria-label": "The two compared" };
    const scroll = make(place, "div", "", region);
    const table = make(scroll, "table", "", { class: "two" });
    const heads = make(make(table, "thead"), "tr", "", { class: "heads" });
    for (const [k, text] of ["", a.name, b.name, "difference", "interval", "first better in"].entries()) {
      make(heads, "th", text, { scope: "col", class: k ? "number" : "text method" });
    }
    const body = make(table, "tbody");
    for (const line of lines) {
      const { name, x, y, value, low, high, share, form } = line;
      const tr = make(body, "tr");
      make(tr, "th", name, { scope: "row", class: "text method" });
      const cells = [explorer.number(x, form), explorer.number(y, form),
        value === null ? "–" : explorer.signed(value),
        explorer.range(line),
        share === null ? "" : `${Math.round(100 * share)} %`];
      const certain = low !== null && low * high > 0;
      cells.forEach((text, k) => make(tr, "td", text, { class: k > 1 && certain ? "number certain" : "number" }));
    }
    const known = data.pairs && [a, b].every((row) => data.pairs.rows.includes(row.number));
    const mean = data.categories.length > 1 ? "Mean over the categories. " : "", level = 100 * data.level;
    make(place, "p", mean + (known
      ? `Intervals: ${level} %, both rows on the same draws of the images. Too few: images, or groups of them, with such defects ` +
        `(good ones, if these are fewer); an interval takes ${data.pairs.fewest}. No draws: the runs keep none of this number.`
      : "No intervals: the best ranked rows are compared on the same draws of the images, if they keep them."),
    { class: "key" });
  }

  function choose(chosen) {
    for (const board of boards) {
      const wanted = explorer.choice(board.data, chosen.rank || board.data.start), ticks = chosen.tick || "";
      const retick = ticks !== board.ticks, again = board.key !== null, before = board.key;
      board.ticks = ticks;
      if (wanted && wanted.key !== board.key) {
        board.key = wanted.key;
        rank(board, wanted);
        if (again || wanted.key !== board.data.start) warm(board, wanted);
      }
      if (retick || board.key !== before) two(board);
    }
  }

  for (const board of boards) {
    const { root, data, picks } = board;
    root.addEventListener("change", ({ target }) => {
      if (target.type === "checkbox") {
        const others = board.ticks.split(",").filter((slug) => slug && slug !== target.value);
        address.choose({ tick: (target.checked ? [...others, target.value].slice(-2) : others).join() });
      } else {
        const metric = data.metrics.find((one) => one.key === picks.metric.value);
        const near = (list, ...wanted) =>
          (wanted.map((one) => list.find(([slug]) => slug === one)).find(Boolean) || list[0])[0];
        const limit = near(metric.limits, picks.limit.value, explorer.choice(data, data.start).limit);
        const keys = [near(metric.sizes, picks.size.value), ...metric.sizes.map(([slug]) => slug)]
          .map((size) => metric.key + limit + size).filter((key) => key in data.values);
        address.choose({ rank: keys[0] === data.start ? "" : keys[0] });
      }
      choose(address.chosen());
    });
    root.hidden = false;
  }

  address.follow((chosen) => {
    showRows(chosen);
    choose(chosen);
  });
})();
