"use strict";

// What is found at a number of false alarms per 100 good images: the arithmetic of hrbench.metrics and the wording of
// hrbench.report.answer, again, so that a reader can move the number. Tests run both on the same cases.
// Scores are ranks: an image alarms, or a defect is hit, if its rank lies above the limit.
const operating = (() => {
  const FAR = 1e9; // px: nobody has to read what a curve says beyond
  const SUBSETS = ["all", "tiny", "small", "medium", "large"];

  // ---- arithmetic -------------------------------------------------------------------------------------------------

  const count = (list, of) => list.reduce((sum, item) => sum + (of(item) ? 1 : 0), 0);
  const allowed = (good, budget) => Math.floor(budget * good + 1e-9);

  // The highest rank that is still silent when at most this share of the good images may alarm: -1 if all may, infinite
  // without good images.
  function limitAt(good, budget) {
    if (!good.length) return Infinity;
    const most = allowed(good.length, budget);
    return most >= good.length ? -1 : [...good].sort((a, b) => b - a)[most];
  }

  const diameter = (area) => 2 * Math.sqrt(area / Math.PI);
  const softplus = (t) => (t > 0 ? t + Math.log1p(Math.exp(-t)) : Math.log1p(Math.exp(t)));

  // Logistic regression by Firth's penalised likelihood, as hrbench.metrics.logistic.fit_logistic does it.
  function fitFirth(x, hits, iterations = 500) {
    const n = x.length;
    const centre = x.reduce((sum, v) => sum + v, 0) / n;
    const scale = Math.sqrt(x.reduce((sum, v) => sum + (v - centre) ** 2, 0) / n) || 1;
    const z = x.map((v) => (v - centre) / scale);
    let beta = [0, 0], accepted = [0, 0], height = -Infinity, length = Infinity;
    for (let round = 0; round < iterations; round++) {
      const [b0, b1] = beta;
      const p = z.map((v) => 1 / (1 + Math.exp(-(b0 + b1 * v))));
      let i0 = 0, i1 = 0, i2 = 0, likelihood = 0;
      for (let k = 0; k < n; k++) {
        const w = p[k] * (1 - p[k]), eta = b0 + b1 * z[k];
        i0 += w;
        i1 += w * z[k];
        i2 += w * z[k] ** 2;
        likelihood -= softplus(hits[k] ? -eta : eta);
      }
      const determinant = i0 * i2 - i1 ** 2;
      likelihood += Math.log(determinant) / 2;
      const climbed = likelihood >= height - 1e-10, level = likelihood <= height + 1e-10, last = length;
      let step;
      if (climbed) {
        let s0 = 0, s1 = 0;
        for (let k = 0; k < n; k++) {
          const leverage = (p[k] * (1 - p[k]) * (i2 - 2 * i1 * z[k] + i0 * z[k] ** 2)) / determinant;
          const residual = (hits[k] ? 1 : 0) - p[k] + leverage * (0.5 - p[k]);
          s0 += residual;
          s1 += residual * z[k];
        }
        step = [(i2 * s0 - i1 * s1) / determinant, (i0 * s1 - i1 * s0) / determinant];
        const shorter = Math.min(1, 4 / Math.max(Math.abs(step[0]), Math.abs(step[1]), 1e-300));
        step = step.map((s) => s * shorter);
        height = likelihood;
        accepted = [b0, b1];
      } else {
        step = [(accepted[0] - b0) / 2, (accepted[1] - b1) / 2]; // it went down: halve the way back
      }
      length = Math.max(Math.abs(step[0]), Math.abs(step[1])) / (1 + Math.max(Math.abs(b0), Math.abs(b1)));
      const share = climbed && level && length > 0.9 * last ? 0.5 : 1; // it went to and fro
      beta = [b0 + share * step[0], b1 + share * step[1]];
      if (!(length > 1e-11)) break;
    }
    if (!(length < 1e-6)) return { intercept: NaN, slope: NaN };
    return { intercept: beta[0] - (beta[1] * centre) / scale, slope: beta[1] / scale };
  }

  const smallest = (areas) => areas.reduce((a, b) => Math.min(a, b), Infinity);
  const largest = (areas) => areas.reduce((a, b) => Math.max(a, b), -Infinity);

  // The area found with this probability, or why there is none, in the words of hrbench.metrics.detection.
  function detect(areas, hits, probability) {
    const hit = count(hits, Boolean), fit = { intercept: NaN, slope: NaN };
    const none = (reason, estimate = NaN, found = fit) => ({ area: null, reason, estimate, fit: found });
    if (!areas.length) return none("not estimable (no components)");
    const low = smallest(areas), high = largest(areas);
    if (hit === areas.length) {
      return none(`not estimable (all ${areas.length} components hit, smallest ${fixed(low, 0)} px)`);
    }
    if (!hit) return none(`not reached (no component hit, largest ${fixed(high, 0)} px)`);
    if (low === high) return none(`not estimable (all components have ${fixed(low, 0)} px)`);
    const found = fitFirth(areas.map(Math.log), hits);
    if (!(found.slope > 0)) return none("not reached (larger defects are not found more often)", Infinity, found);
    const size = (Math.log(probability / (1 - probability)) - found.intercept) / found.slope;
    const area = size < 700 ? Math.exp(size) : Infinity;
    if (area > high) return none(`not reached (largest ${fixed(high, 0)} px)`, area, found);
    return { area, reason: "", estimate: area, fit: found };
  }

  const points = new WeakMap(); // by method and limit: a slider asks for the same again and again

  // Everything that holds of a method in a category at a share of alarming good images.
  function pointAt(method, layout, budget, probability) {
    const known = points.get(method) || new Map();
    points.set(method, known);
    if (!known.has(budget)) known.set(budget, newPoint(method, layout, budget, probability));
    return known.get(budget);
  }

  function newPoint(method, layout, budget, probability) {
    const limit = limitAt(method.good, budget);
    const hits = method.critical.map((rank) => rank > limit);
    const sizes = {};
    for (const subset of SUBSETS) sizes[subset] = { hit: 0, n: 0 };
    const right = new Set();
    hits.forEach((hit, k) => {
      for (const subset of ["all", SUBSETS[1 + layout.quarter[k]]]) {
        sizes[subset].n++;
        sizes[subset].hit += hit ? 1 : 0;
      }
      if (hit && method.bad[layout.owner[k]] > limit) right.add(layout.owner[k]);
    });
    return {
      budget, limit, hits, sizes,
      good: method.good.length,
      alarms: count(method.good, (rank) => rank > limit),
      images: method.bad.length,
      masked: method.masked ?? method.bad.length,
      called: count(method.bad, (rank) => rank > limit),
      right: right.size,
      reliable: detect(layout.areas, hits, probability),
    };
  }

  // ---- false-alarm rates: Clopper and Pearson -----------------------------------------------------------------------

  // P(at most k of n) if each happens with probability p.
  function atMost(k, n, p) {
    if (p <= 0) return 1;
    if (p >= 1) return k >= n ? 1 : 0;
    let term = n * Math.log1p(-p), sum = 0;
    for (let i = 0; i <= k; i++) {
      sum += Math.exp(term);
      term += Math.log((n - i) / (i + 1)) + Math.log(p) - Math.log1p(-p);
    }
    return Math.min(1, sum);
  }

  function bisect(f) {
    let low = 0, high = 1;
    for (let i = 0; i < 80; i++) {
      const middle = (low + high) / 2;
      if (f(middle)) low = middle;
      else high = middle;
    }
    return (low + high) / 2;
  }

  function upperRate(k, n, tail) {
    if (k >= n) return 1;
    return k > 0 ? bisect((p) => atMost(k, n, p) > tail) : 1 - tail ** (1 / n);
  }

  const lowerRate = (k, n, tail) => 1 - upperRate(n - k, n, tail);
  const rates = (k, n, level) => [lowerRate(k, n, (1 - level) / 2), upperRate(k, n, (1 - level) / 2)];

  // ---- words --------------------------------------------------------------------------------------------------------

  // As Python's format: what lies exactly between two neighbours goes to the even one. Thousands are set off.
  function fixed(value, decimals) {
    const halves = value * 2 ** (decimals + 1);
    let text = value.toFixed(decimals);
    if (Number.isInteger(halves) && halves % 2 !== 0) {
      const below = Math.floor(value * 10 ** decimals);
      text = ((below % 2 === 0 ? below : below + 1) / 10 ** decimals).toFixed(decimals);
    }
    return text.replace(/\B(?=(\d{3})+(?!\d)(?<!\.\d*))/g, ",");
  }

  const figure = (value) => fixed(value, value >= 9.95 ? 0 : 1);
  const pixels = (area) => `${figure(area)} px`;
  const percent = (share) => `${fixed(100 * share, 100 * share >= 9.95 || share === 0 ? 0 : 1)} %`;
  const perHundred = (budget) => String(parseFloat((100 * budget).toPrecision(6)));
  const plural = (n, word) => `${fixed(n, 0)} ${word}${n === 1 ? "" : "s"}`;
  const alarmsText = (budget) => {
    const number = perHundred(budget);
    return `${number} false alarm${number === "1" ? "" : "s"} per 100 good images`;
  };
  const odds = (p) =>
    Math.abs(10 * p - Math.round(10 * p)) < 1e-9 ? `${Math.round(10 * p)} of 10` : `${perHundred(p)} of 100`;

  function between([low, high]) {
    if (high === null) return `from ${low > 0 ? `${pixels(low)} to` : "below the smallest to"} beyond the largest seen here`;
    return low > 0 ? `${figure(low)} to ${pixels(high)}` : `anything up to ${pixels(high)}`;
  }

  function short([low, high]) {
    if (high === null) return low > 0 ? `≥ ${pixels(low)}` : "any size";
    return low > 0 ? `${figure(low)}–${pixels(high)}` : `≤ ${pixels(high)}`;
  }

  function opening(budget, good) {
    if (allowed(good, budget)) return `At ${alarmsText(budget)}`;
    const upper = percent(1 - 0.05 ** (1 / good));
    return `With zero alarms among ${plural(good, "good image")} (the true rate may be up to ${upper})`;
  }

  // One sentence about a method in a category; interval: [low, high] in px, or null where none is known.
  function sentence(name, point, areas, probability, interval) {
    if (!point.good) return `${name}: without good test images there is no number of false alarms.`;
    const start = `${opening(point.budget, point.good)} ${name}`, of = odds(probability);
    const { hit, n } = point.sizes.all, found = point.reliable, defects = plural(n, "defect");
    if (!n) return `${start} has no defect to find.`;
    if (found.area !== null) {
      const size = `${pixels(found.area)} (${pixels(diameter(found.area))} across)`;
      const end = interval ? `${defects} cannot say it better than ${between(interval)}` : `this rests on ${defects}`;
      return `${start} finds ${of} defects of ${size} or more; ${end}.`;
    }
    const low = pixels(smallest(areas)), high = pixels(largest(areas)), some = `${fixed(hit, 0)} of ${defects}`;
    if (hit === n) {
      const all = n === 1 ? `the only defect, of ${low}` : `all ${defects}, the smallest of ${low}`;
      return `${start} finds ${all}: where it begins to miss cannot be told.`;
    }
    if (!hit) return `${start} finds none of ${defects}, the largest of ${high}.`;
    if (low === high) return `${start} finds ${some}, all of ${low}: nothing can be said of other sizes.`;
    if (!(found.fit.slope > 0)) return `${start} finds ${some}, large ones not more often than small ones.`;
    return `${start} does not find ${of} defects of any size seen here (largest ${high}).`;
  }

  // ---- cells of the answer table ------------------------------------------------------------------------------------

  const MOST_SIZES = 3;
  const blank = (text, title) => ({ text, title, value: null, small: [], mark: "", bar: null, place: 0 });

  function sizeCell(point, probability, interval, level) {
    const found = point.reliable;
    if (!point.good) return blank("–", "no good test image");
    if (found.area === null) {
      const [text, why] = found.reason.split(" (");
      const far = found.estimate < FAR
        ? `; the curve, extrapolated, would reach it at ${pixels(found.estimate)}: not a result` : "";
      return { ...blank(text, found.reason + far), small: why ? [why.slice(0, -1)] : [] };
    }
    const across = `${fixed(diameter(found.area), 1)} px`, small = [`⌀ ${across}`];
    const text = pixels(found.area);
    let title = `${odds(probability)} defects of ${text} are found, the area of a circle ${across} across`;
    if (interval) {
      small.push(short(interval));
      title += `; ${perHundred(level)} % interval ${between(interval)}`;
    }
    return { ...blank(text, title), value: found.area, small };
  }

  // In how many of many categories a size is found reliably, or all that there is.
  function reachedCell(parts, categories, probability) {
    if (!parts.some(({ point }) => point.good)) return blank("–", "no good test image");
    const reached = [];
    for (const { entry: { name }, point } of parts) {
      const { area } = point.reliable, { hit, n } = point.sizes.all;
      if (area !== null) reached.push(`${name} ${pixels(area)}`);
      else if (n && hit === n) reached.push(`${name} the smallest seen`);
    }
    const title = reached.length
      ? `${odds(probability)} defects are found from: ${reached.join("; ")}` : "not reached in any category";
    return { ...blank(`${reached.length} / ${categories}`, title), value: reached.length };
  }

  function shareCell(hit, n, what, few, missing) {
    if (!n) return blank("–", missing);
    if (n < few) return blank(`n = ${n}`, `only ${plural(n, "defect")}, no number below ${few}`);
    const value = hit / n;
    return { ...blank(fixed(value, 3), `${fixed(hit, 0)} of ${fixed(n, 0)} ${what}`), value };
  }

  // The cells of one category: a90, recall by size, defective images called, and rightly, good images that alarm.
  function categoryCells(point, rules, known) {
    const size = sizeCell(point, rules.probability, known.size, rules.level);
    const cells = SUBSETS.map((subset) => {
      const { hit, n } = point.sizes[subset];
      if (!point.good) return blank("–", "no good test image");
      const cell = shareCell(hit, n, "defects hit", subset === "all" ? 1 : rules.few, "no defect of this size");
      if (cell.value === null) return cell;
      if (subset !== "all") return { ...cell, bar: cell.value };
      if (!known.recall) return cell;
      const [low, high] = known.recall.map((end) => fixed(end, 2));
      const title = `${cell.title}; ${perHundred(rules.level)} % interval ${low} to ${high}`;
      return { ...cell, small: [`${low}–${high}`], title };
    });
    if (!point.good) {
      return [size, ...cells, ...Array(3).fill(blank("–", "no good test image"))];
    }
    cells.push(shareCell(point.called, point.images, "defective images alarm", 1, "no defective image"));
    const right = "defective images alarm with a defect hit";
    cells.push(shareCell(point.right, point.masked, right, 1, point.images ? "no mask" : "no defective image"));
    const [low, high] = rates(point.alarms, point.good, rules.level).map(percent);
    const share = percent(point.alarms / point.good);
    cells.push({
      ...blank(
        `${fixed(point.alarms, 0)} / ${fixed(point.good, 0)}`,
        `${fixed(point.alarms, 0)} of ${plural(point.good, "good image")} alarm, ${share}; ` +
          `${perHundred(rules.level)} % interval ${low} to ${high}`,
      ),
      value: point.alarms / point.good,
    });
    return [size, ...cells];
  }

  // The mean over categories of the cells above but the first; `cells` are those of each category that is covered.
  function meanCells(cells, points) {
    const last = cells[0].length - 1;
    const means = [];
    for (let column = 1; column < last; column++) {
      const values = cells.map((line) => line[column].value).filter((value) => value !== null);
      if (!values.length) {
        means.push(blank("–", "no category has this number"));
        continue;
      }
      const value = values.reduce((a, b) => a + b, 0) / values.length;
      const lacking = cells.length - values.length;
      let title = `${fixed(smallest(values), 3)} to ${fixed(largest(values), 3)} over ${values.length} `;
      title += values.length === 1 ? "category" : "categories";
      if (lacking) title += `; ${lacking} of ${cells.length} without a value`;
      const bar = column > 1 && column < 6 ? value : null;
      means.push({ ...blank(fixed(value, 3), title), value, mark: lacking ? "°" : "", bar });
    }
    const alarms = points.reduce((sum, point) => sum + point.alarms, 0);
    const good = points.reduce((sum, point) => sum + point.good, 0);
    if (!good) return [...means, blank("–", "no good test image")];
    const title = `${fixed(alarms, 0)} of ${plural(good, "good image")} alarm, all categories together`;
    return [...means, { ...blank(`${fixed(alarms, 0)} / ${fixed(good, 0)}`, title), value: alarms / good }];
  }

  // Places 1 and 2 of a column: equal prints share theirs, and where all are equal there are none.
  function places(cells, competes, least) {
    const of = cells.map((cell, row) => (competes[row] && cell.value !== null ? cell.text : ""));
    const texts = new Map(cells.map((cell, row) => [of[row], cell.value]).filter(([text]) => text));
    if (texts.size < 2) return of.map(() => 0);
    const order = [...texts.keys()].sort((a, b) => (least ? 1 : -1) * (texts.get(a) - texts.get(b)));
    return of.map((text) => (text && order.indexOf(text) < 2 ? order.indexOf(text) + 1 : 0));
  }

  // Ranks by a column of shares: equal prints share theirs, null where not comparable; and the rows in their order.
  function ranking(cells, comparable, numbers) {
    const value = (row) => (cells[row].value === null ? -1 : cells[row].value);
    const ranked = (row) => comparable[row] && cells[row].value !== null;
    const order = cells.map((_, row) => row).sort(
      (a, b) => ranked(b) - ranked(a) || value(b) - value(a) || numbers[a] - numbers[b],
    );
    const prints = order.filter(ranked).map((row) => cells[row].text);
    return { order, ranks: cells.map((cell, row) => (ranked(row) ? 1 + prints.indexOf(cell.text) : null)) };
  }

  // The table of a category (its index), or of all together (null): the rows in order, with ranks and cells.
  function table(data, category, budget) {
    const chosen = category === null ? data.categories : [data.categories[category]];
    const many = chosen.length > MOST_SIZES;
    const of = new Map(data.rows.map((row) => [row.number, []]));
    for (const entry of chosen) {
      for (const method of entry.methods) {
        const point = pointAt(method, entry.layouts[method.layout], budget, data.probability);
        const known = knownAt(method, budget);
        of.get(method.number).push({ entry, point, known, cells: categoryCells(point, data, known) });
      }
    }
    const rows = data.rows.filter((row) => of.get(row.number).length);
    const comparable = rows.map((row) => row.comparable && of.get(row.number).length === chosen.length);
    const lines = rows.map((row) => {
      const parts = of.get(row.number);
      let sizes = chosen.map((entry) => {
        const part = parts.find((one) => one.entry === entry);
        return part ? part.cells[0] : blank("–", "no run, or no alarm scores");
      });
      if (many) sizes = [reachedCell(parts, chosen.length, data.probability)];
      if (category !== null || data.categories.length === 1) return [...sizes, ...parts[0].cells.slice(1)];
      return [...sizes, ...meanCells(parts.map((part) => part.cells), parts.map((part) => part.point))];
    });
    const first = many ? 1 : chosen.length;
    const columns = lines.length ? lines[0].length : 0, parts = rows.map((row) => of.get(row.number));
    for (let column = 0; column < columns - 1; column++) {
      const competes = column < first ? comparable : covering(parts, comparable, column - first + 1);
      const marks = places(lines.map((line) => line[column]), competes, column < first && !many);
      lines.forEach((line, at) => { line[column] = { ...line[column], place: marks[at] }; });
    }
    const recall = lines.map((line) => line[first]);
    const { order, ranks } = ranking(recall, comparable, rows.map((row) => row.number));
    return order.map((at) => (
      { row: rows[at], rank: ranks[at], cells: lines[at], recall: lines[at][first], parts: of.get(rows[at].number) }));
  }

  // Which comparable rows have this number in every category in which any of them has it.
  function covering(parts, comparable, column) {
    const defined = parts.map((row) => row.map((part) => part.cells[column].value !== null));
    const fair = defined.filter((_, at) => comparable[at]);
    const complete = (mine) => fair.every((other) => other.every((there, k) => !there || mine[k]));
    return defined.map((mine, at) => comparable[at] && complete(mine));
  }

  // The intervals that were measured at a budget that lets as many good images alarm.
  function knownAt(method, budget) {
    const n = method.good.length;
    const entry = method.known.find(([other]) => allowed(n, other) === allowed(n, budget));
    return { size: entry ? entry[1] : null, recall: entry ? entry[2] : null };
  }

  // One sentence for each line of a category's table.
  function sentences(lines, probability) {
    return lines.map(({ row, parts: [part] }) => {
      const method = part.entry.methods.find((one) => one.number === row.number);
      return sentence(row.name, part.point, part.entry.layouts[method.layout].areas, probability, part.known.size);
    });
  }

  // A number of false alarms for all categories, and whether it comes down to none.
  function heading(data, budget) {
    const some = data.categories.some(({ methods }) => methods.some(({ good }) => allowed(good.length, budget)));
    return alarmsText(budget) + (some || !budget ? "" : ", which is none of so few good images");
  }

  // Of each category the sentence of the row that finds the smallest defects reliably, or else the most of them.
  function best(data, budget) {
    return data.categories.flatMap((entry, at) => {
      const lines = table(data, at, budget), ranked = lines.filter(({ rank }) => rank !== null);
      const sizes = ranked.map(({ cells: [size] }) => (size.value === null ? Infinity : size.value));
      if (!ranked.length) return [];
      return [`${entry.name}: ${sentences([ranked[sizes.indexOf(smallest(sizes))]], data.probability)[0]}`];
    });
  }

  return {
    SUBSETS, smallest, largest, allowed, limitAt, diameter, fitFirth, detect, pointAt, upperRate, lowerRate, rates,
    fixed, figure, pixels,
    percent, perHundred, plural, odds, between, opening, sentence, categoryCells, places, ranking, table, sentences,
    knownAt, alarmsText, heading, best,
  };
})();

if (typeof module !== "undefined") module.exports = operating;

// ---- the page -----------------------------------------------------------------------------------------------------

if (typeof document !== "undefined") (() => {
  const all = (root, selector) => [...root.querySelectorAll(selector)];

  // Write a cell as macros.html does.
  function writeCell(td, cell) {
    const classes = ["number", ["", "best", "second"][cell.place], cell.value === null ? "none" : ""];
    td.className = classes.filter(Boolean).join(" ");
    td.title = cell.title;
    td.dataset.sort = cell.value === null ? "" : String(cell.value);
    td.replaceChildren();
    make(td, "span", cell.text);
    if (cell.mark) make(td, "sup", cell.mark);
    for (const line of cell.small) make(td, "small", line);
    if (cell.bar === null) {
      delete td.dataset.bar;
    } else {
      td.dataset.bar = "";
      td.style.setProperty("--bar", `${(100 * cell.bar).toFixed(1)}%`);
    }
  }

  function writeAnswer(root, data, budget) {
    const category = root.dataset.category === "" ? null : Number(root.dataset.category);
    const body = root.querySelector("tbody"), lines = operating.table(data, category, budget);
    const rows = new Map([...body.rows].map((row) => [row.dataset.number, row]));
    for (const { row, rank, cells } of lines) {
      const tr = rows.get(String(row.number));
      tr.cells[0].textContent = rank === null ? "–" : String(rank);
      tr.cells[0].dataset.sort = rank === null ? "" : String(rank);
      cells.forEach((cell, at) => writeCell(tr.cells[at + 2], cell));
      body.append(tr);
    }
    arrange(root.querySelector("th[aria-sort]"));
    const several = category === null && data.categories.length > 1;
    const texts = several ? operating.best(data, budget) : operating.sentences(lines, data.probability);
    const list = root.querySelector(".sentences");
    list.replaceChildren();
    texts.forEach((text, k) => make(list, "li", text, several ? {} : { "data-of": lines[k].row.number }));
    return lines;
  }

  // Round numbers inside an interval, at most so many: the ticks of a logarithmic axis.
  function ticks(low, high, most) {
    for (const steps of [[1, 2, 5], [1, 3], [1]]) {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
        found.push(...steps.map((step) => step * 10 ** power).filter((tick) => tick >= low && tick <= high));
      }
      if (found.length && found.length <= most) return found;
    }
    return [Math.sqrt(low * high)];
  }

  function drawPod(figure, data, budget) {
    const entry = data.categories[Number(figure.dataset.category)], svg = figure.querySelector("svg");
    const items = data.rows.flatMap((row) => {
      const method = entry.methods.find((one) => one.number === row.number);
      if (!method) return [];
      const layout = entry.layouts[method.layout];
      return [{ row, areas: layout.areas, point: operating.pointAt(method, layout, budget, data.probability) }];
    }).filter((item) => item.areas.length && item.point.good);
    figure.hidden = !items.length;
    if (!items.length) return;
    const low = operating.smallest(items.map((item) => operating.smallest(item.areas)));
    const high = operating.largest(items.map((item) => operating.largest(item.areas)));
    const margin = Math.max(1.08, (high / low) ** 0.03), ends = [low / margin, high * margin];
    const left = 52, right = 748, rug = items.length === 1 ? 16 : Math.min(11, 60 / items.length);
    const top = 8 + items.length * rug + 8, bottom = 320 - 40 - items.length * rug - 8;
    const x = (area) => left + ((right - left) * Math.log(area / ends[0])) / Math.log(ends[1] / ends[0]);
    const y = (share) => bottom - (bottom - top) * share;
    svg.replaceChildren();
    const text = (words, at, up, anchor, colour) => make(svg, "text", words,
      { x: at.toFixed(1), y: up.toFixed(1), "text-anchor": anchor, "font-size": 11, fill: `var(--${colour})` });
    const line = (d, colour, width, more) => make(svg, "path", "",
      { d, fill: "none", stroke: colour, "stroke-width": width, ...more });
    for (const share of [0, 0.5, data.probability, 1]) {
      const dots = share === data.probability ? { "stroke-dasharray": "2 3" } : {};
      line(`M${left} ${y(share)}H${right}`, share === data.probability ? "var(--muted)" : "var(--line)", 1, dots);
      text(String(share), left - 6, y(share) + 4, "end", "muted");
    }
    text("hit", left - 6, (top - 8 + 8) / 2 + 4, "end", "muted");
    text("missed", left - 6, bottom + 8 + (items.length * rug) / 2 + 4, "end", "muted");
    for (const tick of ticks(...ends, 12)) {
      text(operating.fixed(tick, 0), x(tick), 320 - 20, "middle", "ink");
      text(`⌀ ${operating.figure(operating.diameter(tick))}`, x(tick), 320 - 6, "middle", "muted");
    }
    // What hover.js reads values by.
    svg.dataset.axes = JSON.stringify([{
      box: [left, top, right, bottom],
      x: { log: true, ends, label: "area, px" },
      y: { ends: [0, 1], label: "probability of detection" },
    }]);
    const legend = figure.querySelector(".legend");
    legend.replaceChildren();
    items.forEach(({ row, areas, point }, place) => {
      const { fit, area, reason } = point.reliable, colour = row.colour;
      let strokes = "";
      areas.forEach((size, k) => {
        const up = point.hits[k] ? -1 : 1, foot = (up < 0 ? top - 8 : bottom + 8) + up * place * rug;
        strokes += `M${x(size).toFixed(1)} ${foot.toFixed(1)}v${(0.8 * up * rug).toFixed(1)}`;
      });
      const of = { "data-row": row.number };
      line(strokes, colour, 1, { "stroke-opacity": 0.8, ...of });
      const dash = row.dash ? { "stroke-dasharray": row.dash } : {};
      if (!Number.isNaN(fit.slope)) {
        const least = operating.smallest(areas), ratio = operating.largest(areas) / least;
        const curve = Array.from({ length: 101 }, (_, k) => {
          const size = least * ratio ** (k / 100);
          const share = 1 / (1 + Math.exp(-fit.intercept - fit.slope * Math.log(size)));
          return `${x(size).toFixed(1)} ${y(share).toFixed(1)}`;
        });
        line(`M${curve.join("L")}`, colour, 1.6, { ...dash, ...of, "data-reads": "" });
      }
      if (area !== null) {
        line(`M${x(area).toFixed(1)} ${y(0)}V${y(data.probability)}`, colour, 1, of);
        make(svg, "circle", "", { cx: x(area).toFixed(1), cy: y(data.probability), r: 4, fill: colour, ...of });
      }
      const entry = { type: "button", "data-key": row.number, "aria-pressed": "false", tabindex: place ? -1 : 0 };
      const item = make(make(legend, "li", "", { "data-of": row.number }), "button", "", entry);
      const key = make(item, "span", "", { class: "swatch" }).appendChild(svg.cloneNode(false));
      key.setAttribute("viewBox", "0 0 34 8");
      key.removeAttribute("data-axes");
      key.setAttribute("aria-label", "");
      make(key, "path", "", { d: "M0 4H34", fill: "none", stroke: colour, "stroke-width": 2, ...dash });
      const { hit, n } = point.sizes.all;
      const size = area === null ? reason.split(" (")[0] : operating.pixels(area);
      make(item, "span", `${row.name}: a${operating.perHundred(data.probability)} ${size}, ${hit} of ${n} hit, ` +
        `${point.alarms} of ${point.good} good images alarm`);
    });
  }

  const boards = all(document, "script.operating").map((script) => {
    const section = script.closest("section"), data = JSON.parse(script.textContent);
    const parts = [[".pod", drawPod], ["div.answer", writeAnswer]];
    const drawn = parts.flatMap(([what, draw]) => all(section, what).map((element) => ({ element, draw, at: null })));
    const answer = drawn.find(({ draw }) => draw === writeAnswer), input = section.querySelector(".alarms input");
    return { section, data, drawn, answer, input, shown: null, waits: false };
  });

  // Draw anew what can be seen: in a closed category nothing is drawn before it is opened.
  function refresh(board) {
    const { data, shown } = board;
    for (const part of board.drawn) {
      if (part.at === shown || part.element.closest("details:not([open])")) continue;
      part.at = shown;
      const lines = part.draw(part.element, data, data.positions[shown]);
      if (part === board.answer) [board.first] = lines;
    }
  }

  function show(board, place, now = false) {
    const { section, data, input } = board, budget = data.positions[place], words = operating.heading(data, budget);
    input.value = String(place);
    input.setAttribute("aria-valuetext", words);
    const moved = board.shown !== null && board.shown !== place;
    board.shown = place;
    section.querySelector(".alarms output").textContent = operating.perHundred(budget);
    all(section, ".stops span").forEach((stop, at) => stop.classList.toggle("here", at === place));
    for (const element of all(section, ".budget")) element.textContent = words;
    if (now) refresh(board);
    if (!moved || now || board.waits) return; // a page that opens has nothing to announce
    board.waits = true;
    requestAnimationFrame(() => {
      board.waits = false;
      refresh(board);
      const { row, recall } = board.first, heading = operating.heading(data, data.positions[board.shown]);
      section.querySelector(".said").textContent =
        `${heading}: ${row.name} is first, recall ${recall.text}`;
    });
  }

  // The number is the reader's, not a dataset's: all sliders go to it, or as near as they can.
  function nearest(data, budget) {
    const far = data.positions.map((stop) => Math.abs(stop - budget));
    return far.indexOf(Math.min(...far));
  }

  for (const board of boards) {
    const { section, data, input } = board;
    const go = (place) => boards.forEach((one) => show(one, nearest(one.data, data.positions[place])));
    const keep = () => address.choose({ alarms: operating.perHundred(data.positions[board.shown]) }, false);
    input.addEventListener("input", () => go(Number(input.value)));
    input.addEventListener("change", keep);
    all(section, ".stops span").forEach((stop, at) => stop.addEventListener("click", () => {
      go(at);
      keep();
    }));
    section.addEventListener("toggle", () => refresh(board), true);
    section.querySelector(".alarms").hidden = data.positions.length < 2;
    section.classList.add("slides");
  }
  address.follow(({ alarms }) => {
    const budget = /^[0-9.]+$/.test(alarms) && Number.isFinite(Number(alarms)) ? Number(alarms) / 100 : null;
    for (const board of boards) show(board, nearest(board.data, budget ?? board.data.headline), true);
  });

  // What the slider may ask for next is worked out while nothing else is to be done.
  function ahead(tasks) {
    const later = window.requestIdleCallback;
    const step = (left) => {
      while (tasks.length && left.timeRemaining() > 4) tasks.pop()();
      if (tasks.length) later(step);
    };
    if (later && tasks.length) later(step);
  }

  ahead(boards.flatMap(({ data }) => data.positions.flatMap((budget) => data.categories.flatMap((entry) =>
    entry.methods.map((method) => () =>
      operating.pointAt(method, entry.layouts[method.layout], budget, data.probability))))));

  let before = [];
  addEventListener("beforeprint", () => {
    before = boards.map((board) => board.shown);
    for (const board of boards) show(board, nearest(board.data, board.data.headline), true);
  });
  addEventListener("afterprint", () => boards.forEach((board, at) => show(board, before[at], true)));
})();
