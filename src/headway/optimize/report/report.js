"use strict";
(() => {
  const page = JSON.parse(document.getElementById("report-data").textContent);
  const runs = new Map(page.runs.map((run) => [run.id, run]));
  const SVG = "http://www.w3.org/2000/svg";

  // Small tools ------------------------------------------------------------------------------------------------------
  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === true) element.setAttribute(key, "");
      else if (value !== false && value != null) element.setAttribute(key, value);
    }
    element.append(...children.filter((child) => child != null));
    return element;
  }
  const narrow = () => document.documentElement.clientWidth < 560;
  const finite = (value) => typeof value === "number" && Number.isFinite(value);
  function fill(value, parts) {
    if (typeof value === "string" && value.startsWith("$")) return parts[value.slice(1)];
    if (Array.isArray(value)) return value.map((item) => fill(item, parts));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, fill(item, parts)]));
    return value;
  }
  function extent(values, pad, log) {
    const known = values.filter((value) => finite(value) && (!log || value > 0));
    let low = Math.min(...known), high = Math.max(...known);
    if (!known.length) return log ? [1, 10] : [0, 1];
    if (log) {
      const margin = Math.max(Math.log(high / low) * pad, 0.05);
      return [Math.exp(Math.log(low) - margin), Math.exp(Math.log(high) + margin)];
    }
    const margin = (high - low) * pad || Math.abs(high) * 0.05 || 1;
    return [low - margin, high + margin];
  }
  // Round numbers of a logarithmic axis: 1, 2, 5, or with 3, 4, 7 between where the axis is short.
  function ladder([low, high]) {
    const steps = high / low > 300 ? [1] : high / low > 30 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7];
    const values = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1)
      for (const step of steps) values.push(Number((step * 10 ** power).toPrecision(3)));
    return values.filter((value) => value >= low && value <= high);
  }

  // One tooltip for every chart: text only, so no string of a model or recipe is ever read as HTML ------------------
  const tip = make("div", { class: "tip", role: "tooltip", id: "tip", hidden: true });
  document.body.append(tip);
  function showTip(content, x, y) {
    tip.replaceChildren(...content);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    let left = x + 14, top = y + 14;
    if (left + box.width > width - 8) left = Math.max(8, Math.min(x - box.width - 14, width - box.width - 8));
    if (top + box.height > window.innerHeight - 8) top = Math.max(8, y - box.height - 14);
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${top + window.scrollY}px`;
  }
  const hideTip = () => { tip.hidden = true; };
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
  window.addEventListener("scroll", hideTip, { passive: true });

  function candidateTip(run, id) {
    const candidate = run.byId.get(id);
    if (!candidate) return null;
    const table = make("table", {}, make("tr", {}, make("th"), make("th", {}, "measured"), make("th", {}, "predicted")));
    for (const [label, measured, predicted] of candidate.rows)
      table.append(make("tr", {}, make("th", {}, label), make("td", {}, measured), make("td", {}, predicted)));
    return [make("div", { class: "recipe" }, candidate.recipe), make("div", { class: "muted" }, candidate.called), table];
  }
  function valueTip(value) {
    const table = make("table");
    for (const [key, text] of Object.entries(value))
      table.append(make("tr", {}, make("th", {}, key), make("td", { class: "free" }, String(text))));
    return [table];
  }
  function tooltipOf(run) {
    return (handler, event, item, value) => {
      if (value == null || value === "") return hideTip();
      const content = typeof value === "object" ? valueTip(value) : candidateTip(run, String(value));
      const at = event.touches?.[0] ?? event.changedTouches?.[0] ?? event;
      if (content) showTip(content, at.clientX, at.clientY);
      return undefined;
    };
  }

  // Drawing ----------------------------------------------------------------------------------------------------------
  const CONFIG = {
    background: null,
    font: getComputedStyle(document.body).fontFamily,
    padding: { left: 2, right: 6, top: 8, bottom: 2 },
    autosize: { type: "fit-x", contains: "padding" },
    view: { stroke: null },
    axis: {
      labelColor: "var(--muted)", titleColor: "var(--muted)", gridColor: "var(--line)", domainColor: "var(--line)",
      tickColor: "var(--line)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500, titlePadding: 8, labelPadding: 5,
    },
    axisY: { titleAngle: 0, titleAlign: "left", titleAnchor: "end", titleBaseline: "bottom", titleX: 0, titleY: -10 },
  };
  const chosen = new Map();
  const drawn = [];

  async function draw(mount, run, name, parts, after) {
    const turn = (mount.turn = (mount.turn ?? 0) + 1);
    const spec = fill(page.specs[name], { labelLimit: narrow() ? 110 : 260, ...parts });
    spec.config = CONFIG;
    const holder = make("div");
    holder.style.width = "100%";
    mount.view?.finalize();
    mount.replaceChildren(holder);
    const { view } = await vegaEmbed(holder, spec, {
      mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, ast: true, hover: false,
      tooltip: tooltipOf(run), logLevel: vega.Warn,
    });
    if (turn !== mount.turn) return view.finalize();
    mount.view = view;
    view.container().querySelector("svg")?.setAttribute("focusable", "false");
    view.addEventListener("click", (event, item) => {
      const id = item?.datum?.id;
      if (id !== undefined && run.byId.has(String(id))) choose(run, String(id));
    });
    after?.(view);
    return undefined;
  }

  function focus(run, id) {
    for (const chart of drawn)
      if (chart.run === run && chart.mount.view && "focused" in chart.mount.view.getState().signals)
        chart.mount.view.signal("focused", id).runAsync();
  }

  function choose(run, id) {
    chosen.set(run.id, id);
    focus(run, id);
    const candidate = run.byId.get(id);
    for (const row of document.querySelectorAll(`#${run.id} tr[data-candidate]`))
      row.classList.toggle("on", row.dataset.candidate === id);
    const panel = document.querySelector(`#${run.id} .chosen`);
    if (!panel) return;
    const list = make("dl");
    for (const [label, measured, predicted, against] of candidate.rows)
      list.append(make("div", {}, make("dt", {}, label), make("dd", {},
        (measured === "–" ? `${predicted} predicted` : measured) + (against ? ` (${against})` : ""))));
    panel.replaceChildren(make("div", { class: "mono recipe" }, candidate.recipe),
      make("div", { class: "small muted" }, candidate.called), list);
  }

  // The front --------------------------------------------------------------------------------------------------------
  function picked(card, name) { return card.querySelector(`input[name$="-${name}"]:checked`)?.value; }
  function ticked(card, name) { return Boolean(card.querySelector(`input[data-check="${name}"]`)?.checked); }

  function drawFront(card, mount, run) {
    const axis = run.axes.find((item) => item.key === picked(card, "axis")) ?? run.axes[0];
    const quality = run.quality;
    const guesses = ticked(card, "predicted");
    const close = ticked(card, "close");
    const xOf = (values) => finite(values[axis.key]) ? values[axis.key] / axis.scale : null;
    const yOf = (values) => finite(values[quality.key]) ? values[quality.key] : null;
    const xLimits = run.limits.filter((limit) => limit.metric === axis.key);
    const yLimits = run.limits.filter((limit) => limit.metric === quality.key);
    const floor = yLimits.length ? Math.max(...yLimits.map((limit) => limit.limit)) : null;
    const cut = close && floor !== null ? floor - 3 * Math.max(1 - floor, 0.005) : -Infinity;
    const measured = run.candidates
      .map((candidate) => ({ candidate, x: xOf(candidate.measured), y: yOf(candidate.measured) }))
      .filter((row) => row.x !== null && row.y !== null && row.y >= cut && (!close || row.candidate.role !== "baseline"));
    const rank = { measured: 0, front: 1, baseline: 2, winner: 3 };
    const points = measured.map(({ candidate, x, y }) => ({
      id: candidate.id, x, y, role: candidate.role, rank: rank[candidate.role], spoken: candidate.spoken,
    })).sort((a, b) => a.rank - b.rank);
    const links = !guesses ? [] : measured
      .map(({ candidate, x, y }) => ({ x: xOf(candidate.predicted), y: yOf(candidate.predicted) ?? y, x2: x, y2: y }))
      .filter((row) => row.x !== null);
    const xs = [...points, ...links].map((row) => row.x).concat(xLimits.map((limit) => limit.limit / axis.scale));
    const ys = [...points, ...links].map((row) => row.y).concat(yLimits.map((limit) => limit.limit));
    const log = Math.min(...xs) > 0 && Math.max(...xs) / Math.min(...xs) > 6;
    const xDomain = extent(xs, 0.07, log);
    const yDomain = extent(ys, 0.08, false);
    const step = points.filter((row) => row.role !== "measured")
      .sort((a, b) => axis.lower ? a.x - b.x || b.y - a.y : b.x - a.x || b.y - a.y);
    let best = -Infinity;
    const steps = step.filter((row) => row.y > best && ((best = row.y), true)).map((row, order) => ({ x: row.x, y: row.y, order }));
    const inside = { x: xDomain[0], x2: xDomain[1], y: yDomain[0], y2: yDomain[1] };
    for (const limit of xLimits) {
      if (limit.op === "<=") inside.x2 = Math.min(inside.x2, limit.limit / axis.scale);
      else inside.x = Math.max(inside.x, limit.limit / axis.scale);
    }
    for (const limit of yLimits) inside.y = Math.max(inside.y, limit.limit);
    const middle = log ? Math.sqrt(xDomain[0] * xDomain[1]) : (xDomain[0] + xDomain[1]) / 2;
    const names = points.filter((row) => row.role === "winner" || row.role === "baseline").map((row) => {
      if (row.role === "baseline") {
        const left = row.x > middle;
        return { ...row, name: "original", align: left ? "right" : "left", dx: left ? 6 : -6, dy: 19 };
      }
      const place = log ? Math.log(row.x / xDomain[0]) / Math.log(xDomain[1] / xDomain[0]) : (row.x - xDomain[0]) / (xDomain[1] - xDomain[0]);
      const left = axis.lower ? place > 0.14 : place > 0.86; // nothing beats the winner: that corner is empty
      return { ...row, name: run.winnerName, align: left ? "right" : "left", dx: left ? -11 : 11, dy: -13 };
    });
    return draw(mount, run, "front", {
      height: narrow() ? 300 : 400, points, guesses: links, steps, names,
      region: run.limits.length ? [inside] : [],
      up: xLimits.map((limit) => ({ x: limit.limit / axis.scale, label: limit.label })),
      across: yLimits.map((limit) => ({ y: limit.limit, label: limit.label })),
      xScale: { type: log ? "log" : "linear", domain: xDomain, nice: false },
      yScale: { domain: yDomain, nice: false },
      xTitle: axis.title, yTitle: quality.title, xTicks: log ? ladder(xDomain) : null, xCount: narrow() ? 5 : 9,
    }, (view) => { const id = chosen.get(run.id); if (id) view.signal("focused", id).runAsync(); });
  }

  // Samples ----------------------------------------------------------------------------------------------------------
  function drawSamples(card, mount, run) {
    const group = run.samples.find((item) => item.metric === picked(card, "metric")) ?? run.samples[0];
    const dots = [];
    const boxes = [];
    for (const arm of group.arms) {
      arm.values.forEach((value, index) => dots.push({
        arm: arm.arm, role: arm.role, index: index + 1, value: value / group.scale, said: arm.said[index],
        jitter: (((index * 0.618034) % 1) * 2 - 1) * 0.75,
      }));
      boxes.push({ arm: arm.arm, role: arm.role, low: arm.low / group.scale, high: arm.high / group.scale, median: arm.median / group.scale });
    }
    const inOrder = picked(card, "view") === "order";
    return draw(mount, run, inOrder ? "order" : "spread", {
      height: inOrder ? 260 : 58 * group.arms.length + 10, dots, boxes, xTitle: group.title,
    });
  }

  function drawRatios(card, mount, run) {
    const rows = run.ratios.map((ratio) => ({ ...ratio }));
    const ends = rows.flatMap((row) => [row.value, row.low, row.high, row.floorLow, row.floorHigh, 1]).filter((value) => finite(value) && value > 0);
    for (const row of rows) {
      if (!finite(row.low) || row.low <= 0) row.low = null;
      if (!finite(row.high)) row.high = null;
    }
    const domain = extent(ends, 0.09, true);
    const fine = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.2, 1.4, 1.6, 1.8, 2];
    const ticks = domain[1] / domain[0] > 2.2 ? ladder(domain) : fine.filter((value) => value >= domain[0] && value <= domain[1]);
    return draw(mount, run, "ratios", { height: 46 * rows.length + 8, rows, domain, ticks });
  }

  function drawBits(card, mount, run) {
    const columns = new Set(run.sites.map((site) => site.column)).size;
    const roles = new Set(run.sites.map((site) => site.role)).size;
    return draw(mount, run, "bits", {
      height: Math.max(1, roles) * 26, cells: run.sites, xTitle: run.sitesAxis, textOpacity: columns > (narrow() ? 10 : 36) ? 0 : 1,
    });
  }

  function drawAccuracy(card, mount, run) {
    const axis = run.accuracy.find((item) => item.key === picked(card, "guess")) ?? run.accuracy[0];
    const points = run.candidates
      .filter((candidate) => finite(candidate.measured[axis.key]) && finite(candidate.predicted[axis.key]))
      .map((candidate) => ({
        id: candidate.id, role: candidate.role, spoken: candidate.spoken,
        x: candidate.measured[axis.key] / axis.scale, y: candidate.predicted[axis.key] / axis.scale,
      }));
    const both = points.flatMap((row) => [row.x, row.y]);
    const log = Math.min(...both) > 0 && Math.max(...both) / Math.min(...both) > 6;
    const domain = extent(both, 0.1, log);
    const band = Array.from({ length: 33 }, (_, index) => {
      const share = index / 32;
      const at = log ? domain[0] * (domain[1] / domain[0]) ** share : domain[0] + (domain[1] - domain[0]) * share;
      return { at, low: at - 0.2 * Math.abs(at), high: at + 0.2 * Math.abs(at) };
    });
    return draw(mount, run, "accuracy", {
      height: narrow() ? 280 : 340, points, band, domain, scaleType: log ? "log" : "linear", format: "~g",
      xTitle: `measured ${axis.title}`, yTitle: `predicted ${axis.title}`,
    }, (view) => { const id = chosen.get(run.id); if (id) view.signal("focused", id).runAsync(); });
  }

  // A load run -------------------------------------------------------------------------------------------------------
  const ink = (one) => `var(--rate-${one.colour})`;
  const digits = (value) => Number(value.toPrecision(3)).toString();

  function drawWaits(card, mount, run) {
    const key = picked(card, "wait") ?? "ttft";
    const wait = run.load.waits[key];
    const curves = run.load.runs.flatMap((one) => one[key].map((x, y) => ({
      x, y, by: one.by, said: one.said, series: `${one.said} ${one.by}`, ink: ink(one), share: `${y}%`, wait: `${digits(x)} ${wait.unit}`,
    })));
    const xs = curves.map((row) => row.x);
    const log = Math.min(...xs) > 0 && Math.max(...xs) / Math.min(...xs) > 12;
    const most = Math.max(...xs);
    const domain = log ? [Math.min(...curves.filter((row) => row.y >= 3).map((row) => row.x)), most * 1.03] : [0, most];
    const tokens = key === "tbt";
    return draw(mount, run, "waits", {
      height: narrow() ? 240 : 300, curves, xScale: { type: log ? "log" : "linear", domain, nice: false },
      xTicks: log ? ladder(domain) : null, xCount: narrow() ? 4 : 8, xTitle: wait.title + (log ? " (log scale)" : ""),
      yTitle: tokens ? "share of pairs of tokens, %" : "share of requests, %", whose: tokens ? "of the pairs of tokens" : "of the requests",
    });
  }

  function drawHeld(key, last) {
    return (card, mount, run) => {
      const chosen = picked(card, "rate");
      const runs = run.load.runs.filter((one) => one.said === chosen);
      const end = Math.max(...runs.map((one) => one.seconds));
      const write = key === "pages" ? (value) => `${digits(value)}%` : String;
      const rows = runs.flatMap((one) => [0, ...one.at].map((at, place) => {
        const value = place ? one[key][place - 1] : 0;
        const real = one.by === "engine";
        return { at, value, by: one.by, when: `${digits(at)} s`, said: write(value), stroke: real ? ink(one) : "var(--muted)" };
      }));
      const what = { waiting: "Waiting", running: "Running", pages: "Pages in use" }[key];
      return draw(mount, run, "held", {
        height: narrow() ? 84 : 96, rows, what, step: key === "pages" ? 0 : 1, ink: ink(runs[0]), domain: [0, end], xCount: narrow() ? 4 : 8,
        xTitle: last ? "seconds from the start" : null,
      });
    };
  }

  function drawAttainment(card, mount, run) {
    const rows = run.load.runs.filter((one) => finite(one.attainment)).map((one) => ({
      rate: one.rate, rateSaid: one.said, by: one.by, share: one.attainment, said: `${digits(one.attainment)}%`,
      ink: ink(one), fill: one.by === "engine" ? ink(one) : "var(--surface)",
    })).sort((a, b) => (a.by < b.by ? 1 : a.by > b.by ? -1 : a.rate - b.rate)); // the engine's on top
    const share = run.load.share;
    return draw(mount, run, "attainment", {
      height: narrow() ? 190 : 220, rows, domain: [0, 1.06 * Math.max(...rows.map((row) => row.rate))],
      bar: finite(share) ? [{ share, said: `at least ${digits(share)}%` }] : [],
    });
  }

  const CHARTS = {
    front: drawFront, samples: drawSamples, ratios: drawRatios, bits: drawBits, accuracy: drawAccuracy,
    waits: drawWaits, waiting: drawHeld("waiting", false), running: drawHeld("running", false), pages: drawHeld("pages", true),
    attainment: drawAttainment,
  };

  // Wiring -----------------------------------------------------------------------------------------------------------
  function copyText(button) {
    const source = document.getElementById(button.dataset.copy);
    const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
    const select = () => {
      getSelection().selectAllChildren(source);
      if (document.execCommand("copy")) done();
    };
    if (navigator.clipboard) navigator.clipboard.writeText(source.textContent).then(done, select);
    else select();
  }

  for (const run of runs.values()) {
    run.byId = new Map(run.candidates.map((candidate) => [candidate.id, candidate]));
    for (const row of document.querySelectorAll(`#${run.id} tr[data-candidate]`)) {
      const id = row.dataset.candidate;
      const button = row.querySelector("button.pick");
      row.addEventListener("click", () => choose(run, id));
      row.addEventListener("pointerenter", () => focus(run, id));
      row.addEventListener("pointerleave", () => focus(run, chosen.get(run.id) ?? ""));
      button?.addEventListener("focus", () => focus(run, id));
      button?.addEventListener("blur", () => focus(run, chosen.get(run.id) ?? ""));
    }
  }
  for (const mount of document.querySelectorAll(".plot[data-chart]")) {
    const run = runs.get(mount.dataset.run);
    const card = mount.closest(".card");
    const again = () => CHARTS[mount.dataset.chart](card, mount, run);
    drawn.push({ mount, run, again });
    const scope = mount.closest("figure");
    for (const input of scope.querySelectorAll("input")) input.addEventListener("change", again);
  }
  for (const button of document.querySelectorAll("button[data-copy]")) button.addEventListener("click", () => copyText(button));
  const save = document.getElementById("save-data");
  save?.addEventListener("click", () => {
    const text = JSON.stringify(page.evidence, null, 1);
    const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: "evidence.json" });
    link.click();
    URL.revokeObjectURL(link.href);
  });

  let was = narrow();
  window.addEventListener("resize", () => {
    hideTip();
    if (was !== narrow()) { was = narrow(); drawn.forEach((chart) => chart.again()); }
  });
  Promise.all(drawn.map((chart) => chart.again())).then(() => {
    for (const run of runs.values()) {
      const first = run.candidates.find((candidate) => candidate.role === "winner");
      if (first && document.querySelector(`#${run.id} .chosen`)) choose(run, first.id);
    }
    document.documentElement.dataset.ready = "yes";
  });
})();
