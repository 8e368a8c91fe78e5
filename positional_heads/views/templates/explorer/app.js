// The state of the page, what every panel needs, and the address of what is shown.
const app = (() => {
  const parsed = (id) => JSON.parse(document.getElementById(id).textContent);
  const index = parsed("explorer-index");
  const specifications = parsed("explorer-charts");
  const place = new Map(index.heads.map((name, number) => [name, number]));
  const measures = new Map(index.measures.map((measure) => [measure.id, measure]));
  const runs = new Map(index.runs.map((run) => [run.id, run]));
  const several = new Set(index.measures.map((measure) => measure.run)).size > 1;
  const MOST_CHOSEN = 8;
  // Okabe and Ito's colours in an order that reads on white and on black.
  const COLOURS = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"];
  const state = { heads: [], focus: null, measure: null, query: null, text: null, shown: null };
  const panels = [], parts = [], charts = new Map();

  // Elements and text nodes only: nothing that comes from a result is ever parsed as HTML.
  const el = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || (value === false && !name.startsWith("aria-"))) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name === "style") Object.assign(element.style, value);
      else if (name === "value") element.value = value;
      else element.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return element;
  };
  const by = (id) => document.getElementById(id);

  const number = (value, digits = 3) => {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("-", "−").replace("e−", "e-");
    return String(Number(value.toPrecision(digits))).replace("-", "−");
  };
  const say = (text) => { by("said").textContent = text; };

  // Red is positive and blue negative, everywhere; the middle is the ground of the page.
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const printing = window.matchMedia("print");
  const LIGHT = { diverging: ["#053061", "#3b83bd", "#f7f7f7", "#d6604d", "#67001f"], sequential: ["#fcfbfd", "#9e9ac8", "#3f007d"] };
  const DARK = { diverging: ["#8ec8ff", "#2f6fae", "#272c35", "#b8493c", "#ffb3a3"], sequential: ["#232832", "#7a6fc0", "#e5dcff"] };
  let ramps = null;
  // 257 colours through the given ones, which have equal distances.
  const between = (colours) => Array.from({ length: 257 }, (_, step) => {
    const place = (step / 256) * (colours.length - 1), first = Math.min(Math.floor(place), colours.length - 2), part = place - first;
    const channels = [1, 3, 5].map((at) => {
      const [from, to] = [colours[first], colours[first + 1]].map((colour) => parseInt(colour.slice(at, at + 2), 16));
      return Math.round(from + (to - from) * part).toString(16).padStart(2, "0");
    });
    return `#${channels.join("")}`;
  });
  const palette = () => (dark.matches && !printing.matches ? DARK : LIGHT);
  const ramp = (value, low, high, scale = "sequential") => {
    if (value === null || value === undefined || !Number.isFinite(value)) return dark.matches ? "#3d434d" : "#d0d0d0";
    const kind = scale === "diverging" ? "diverging" : "sequential";
    ramps ??= Object.fromEntries(Object.entries(palette()).map(([name, colours]) => [name, between(colours)]));
    const share = high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0.5;
    return ramps[kind][Math.round(share * 256)];
  };
  const ink = (colour) => {
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#000" : "#fff";
  };
  // A measure whose small values are the notable ones has its dark end there.
  const shade = (measure, value) => ramp(measure.lower && measure.scale === "sequential" && Number.isFinite(value) ? measure.low + measure.high - value : value, measure.low, measure.high, measure.scale);
  const legend = (low, high, scale, unit, lower = false) => {
    const stops = Array.from({ length: 9 }, (_, step) => ramp(low + ((high - low) * (lower ? 8 - step : step)) / 8, low, high, scale));
    if (scale === "flag") {
      return el("p", { class: "legend" }, ["no", "yes"].map((word, value) => el("span", {},
        el("span", { class: "dot", style: { background: ramp(value, 0, 1) } }), word)), el("span", { class: "unit" }, unit));
    }
    return el("p", { class: "legend" }, el("span", {}, number(low)),
      el("span", { class: "ramp", style: { background: `linear-gradient(to right, ${stops.join(", ")})` } }),
      el("span", {}, number(high)), el("span", { class: "unit" }, unit));
  };

  // The details of a head lie with those of its layer: in this page, or in a file beside it that a server gives out.
  const layers = new Map(), unread = new Set();
  const layerOf = (head) => Number(head.slice(1, head.indexOf("H")));
  const loadLayer = async (layer) => {
    const inside = by(`explorer-layer-${layer}`);
    if (inside) return JSON.parse(inside.textContent);
    const answer = await fetch(`explorer_data/L${layer}.json`);
    if (!answer.ok) throw new Error(`explorer_data/L${layer}.json: ${answer.status}`);
    return answer.json();
  };
  const detail = async (head) => {
    const layer = layerOf(head);
    if (!layers.has(layer)) layers.set(layer, loadLayer(layer));
    try {
      const heads = await layers.get(layer);
      if (unread.delete(layer)) {
        by("trouble").hidden = unread.size === 0;
        panels.forEach((panel) => panel.update(new Set(["heads", "focus"])));  // what was drawn without it
      }
      return Object.hasOwn(heads, head) ? heads[head] : {};
    } catch (error) {
      layers.delete(layer);
      unread.add(layer);
      by("trouble").textContent = window.location.protocol === "file:"
        ? "The numbers of single heads lie in files beside this page, which browsers read from a server only: run positional-heads explore DIR --serve and open the address that it prints."
        : `The numbers of layer ${[...unread].join(" and ")} could not be read: see whether the server still runs, then choose the head again.`;
      by("trouble").hidden = false;
      return null;
    }
  };
  const notRead = (heads) => `The numbers of ${heads.join(", ")} could not be read.`;
  const own = (object, ...path) => path.reduce(
    (inner, key) => (inner !== null && inner !== undefined && Object.hasOwn(inner, key) ? inner[key] : undefined), object);

  const colourOf = (head) => COLOURS[Math.max(0, state.heads.indexOf(head)) % COLOURS.length];
  const runNumber = (run) => index.runs.findIndex((one) => one.id === run);

  // Charts: made with their first rows, as wide as their place, redrawn when it changes.
  const ERRORS = 1;  // Vega also warns of empty rows, as a chart of no head has
  const MANY = 1000;  // marks that SVG would redraw too slowly
  const chart = (name, element) => {
    const pending = new Map(), handlers = [], signals = new Map();
    const drawing = el("div", { "aria-hidden": true });  // Vega would rename its place
    element.append(drawing);
    let view = null, tall = null, fitted = null;
    const make = async (given) => {
      const specification = specifications[name];
      const data = specification.data.map((set) => (given.has(set.name) ? { ...set, values: given.get(set.name) } : set));
      const width = Math.max(200, Math.floor(element.clientWidth));
      const made = await vegaEmbed(drawing, { ...specification, data, signals: (specification.signals ?? []).map((one) => (signals.has(one.name) ? { ...one, value: signals.get(one.name) } : one)), width, height: tall ?? specification.height }, {
        mode: "vega", ast: true, actions: false, renderer: [...given.values()].some((rows) => rows.length > MANY) ? "canvas" : "svg", logLevel: ERRORS,
      });
      view = made.view;
      handlers.forEach((handler) => view.addEventListener("click", handler));
      new ResizeObserver(() => {
        const wide = Math.floor(element.clientWidth);
        if (wide > 40 && view.width() !== wide) view.width(wide).runAsync();
      }).observe(element);
    };
    let drawn = Promise.resolve();
    const one = {
      set(data, rows) { pending.set(data, rows); return this; },
      signal(key, value) { signals.set(key, value); return this; },
      rows: (data) => (element.hidden ? [] : view?.data(data) ?? []),
      height(pixels) { tall = pixels; return this; },
      // What is set while a picture is drawn waits for the next.
      draw() {
        drawn = drawn.then(() => {
          const given = new Map(pending);
          pending.clear();
          const taller = tall !== fitted;
          fitted = tall;
          if (!view) return make(given);
          for (const [data, rows] of given) view.data(data, rows);
          for (const [key, value] of signals) view.signal(key, value);
          if (taller) view.height(tall);  // every mark is placed anew, which takes longer than all else
          return view.runAsync();
        });
        return drawn;
      },
      click(handler) { handlers.push((event, item) => handler(item?.datum ?? null, event)); return this; },
    };
    charts.set(name, one);
    return one;
  };

  // A part is drawn while it is in view, so that a choice is quick; on paper everything is in view. `draw` reads numbers
  // first, which may come late: it then asks whether its choice is still the latest. Gives what tells of a change.
  const inView = (section, draw, fold = null) => {
    let stale = true, seen = false, paper = false, turn = 0, drawing = Promise.resolve();
    const drawn = async (own) => {
      await draw(() => turn === own);
      if (turn === own) delete section.dataset.stale;
    };
    const redraw = () => {
      if ((seen || paper) && stale && (!fold || fold.open)) {
        stale = false;
        drawing = drawn(turn);
      }
      return drawing;
    };
    const print = (now) => { paper = now; redraw(); };
    section.dataset.stale = "";
    new IntersectionObserver((entries) => { seen = entries.at(-1).isIntersecting; redraw(); }, { rootMargin: "400px" }).observe(section);
    fold?.addEventListener("toggle", redraw);
    window.addEventListener("beforeprint", () => print(true));
    window.addEventListener("afterprint", () => print(false));
    printing.addEventListener("change", () => print(printing.matches));
    parts.push(() => drawing);
    return () => { turn += 1; stale = true; section.dataset.stale = ""; return redraw(); };
  };

  // A table of the numbers behind a chart, made when it is opened.
  const numbers = (columns, rows) => {
    const fold = el("details", { class: "numbers" }, el("summary", {}, "Numbers"));
    fold.addEventListener("toggle", () => {
      if (!fold.open || fold.childElementCount > 1) return;
      fold.append(el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Numbers" },
        el("table", {}, el("thead", {}, el("tr", {}, columns.map((name) => el("th", { scope: "col" }, name)))),
          el("tbody", {}, rows().map((row) => el("tr", {}, row.map((cell, at) => el(at ? "td" : "th", at ? {} : { scope: "row" },
            typeof cell === "number" ? number(cell, 4) : cell ?? "–"))))))));
    });
    return fold;
  };

  // The address of what is shown: #L4H1,L5H2&measure=run-1/excess&query=37&part=tokens
  const fragment = () => {
    const parts = [state.heads.join(",")];
    if (state.measure !== index.rank_by) parts.push(`measure=${encodeURIComponent(state.measure).replaceAll("%2F", "/")}`);
    if (state.query !== null) parts.push(`query=${state.query}`);
    if (state.text !== null && state.text !== index.texts[0]?.id) parts.push(`text=${state.text}`);
    if (state.focus !== (state.heads.at(-1) ?? null)) parts.push(`focus=${state.focus}`);
    return `#${parts.join("&")}`;
  };
  const read = (hash) => {
    let text = hash.replace(/^#/, "");
    try { text = decodeURIComponent(text); } catch { /* as it is */ }
    const [first, ...rest] = text.split("&");
    const named = [...new Set(first.toUpperCase().split(","))];
    const heads = named.filter((name) => place.has(name)).slice(0, MOST_CHOSEN);
    const given = new Map([first, ...rest].filter((one) => one.includes("=")).map((one) => [one.slice(0, one.indexOf("=")), one.slice(one.indexOf("=") + 1)]));
    return {
      heads,
      unknown: named.filter((name) => name && !place.has(name) && !name.includes("=")),
      measure: measures.has(given.get("measure")) ? given.get("measure") : null,
      query: /^\d{1,7}$/.test(given.get("query") ?? "") ? Number(given.get("query")) : null,
      text: index.texts.some((one) => one.id === given.get("text")) ? given.get("text") : null,
      part: given.get("part") ?? null,
      focus: heads.includes(given.get("focus")) ? given.get("focus") : null,
    };
  };
  let written = null;
  const write = (push) => {
    written = fragment();
    if (written === window.location.hash) return;
    try {
      if (push) window.history.pushState(null, "", written);
      else window.history.replaceState(null, "", written);
    } catch { /* frames without an address, as in notebooks */ }
  };

  const set = (changes, { push = true, address = true } = {}) => {
    const changed = Object.keys(changes).filter((key) => state[key] !== changes[key]);
    Object.assign(state, changes);
    if (!state.heads.includes(state.focus)) state.focus = state.heads.at(-1) ?? null;
    if (address) write(push && changed.includes("heads"));
    else written = window.location.hash;
    const names = new Set(changed);
    if (names.has("heads")) names.add("focus");
    settled = Promise.all(panels.map((panel) => panel.update(names)));
    return settled;
  };
  let settled = Promise.resolve();
  const choose = (head, add = false) => {
    if (!place.has(head)) return Promise.resolve();
    let heads = [head];
    if (add) heads = state.heads.includes(head) ? state.heads.filter((one) => one !== head) : [...state.heads, head].slice(-MOST_CHOSEN);
    if (!heads.length) heads = [head];  // one is always shown
    const measure = measures.get(state.measure);
    const value = measure ? `, ${measure.title} ${number(measure.values[place.get(head)])}` : "";
    say(`${head}${value}. ${heads.length > 1 ? `Chosen: ${heads.join(", ")}.` : ""}`);
    return set({ heads, focus: heads.includes(head) ? head : heads.at(-1) ?? null });
  };

  // For scripts and tests: what is shown, as data.
  window.explorer = Object.freeze({
    state: () => structuredClone(state),
    rows: (name, data) => structuredClone(charts.get(name)?.rows(data).map((row) => ({ ...row })) ?? []),
    settled: () => Promise.all([settled, ...parts.map((drawing) => drawing())]),
  });

  return {
    index, place, measures, runs, state, panels, el, by, number, say, ramp, shade, fragment, ink, legend, detail, own, colourOf, runNumber,
    layerOf, notRead, chart, inView, numbers, read, set, choose, dark, printing, MOST_CHOSEN,
    forgetColours() { ramps = null; },
    get written() { return written; },
    title: (measure) => (several ? `${measure.title} (${runs.get(measure.run)?.name ?? measure.run})` : measure.title),
  };
})();
