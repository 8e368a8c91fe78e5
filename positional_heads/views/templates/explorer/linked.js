// The charts that follow the chosen heads. Each is made when it is first in view, and up to date when in view.
const rangeNames = (edges) => edges.slice(0, -1).map((first, at) => (edges[at + 1] - 1 > first ? `${first}–${edges[at + 1] - 1}` : `${first}`));
const tokens = (value) => (value === null || value === undefined ? "does not turn" : `${Number(value.toPrecision(3))} tokens a turn`);

// A panel of one chart: `rows(details)` gives its data sets, and may say in words what they show.
function chartPanel(app, id, name, make) {
  const place = app.el("div", { id: `${id}-chart`, class: "chart", role: "img" });
  const words = app.el("p", { class: "soft" }), extra = app.el("div");
  const section = app.by(id), fold = section.closest("details");
  section.append(extra, place, words);
  let chart = null, table = null;
  const draw = async (latest) => {
    const heads = panel.ofPage ? [] : app.state.heads;
    const details = new Map(await Promise.all(heads.map(async (head) => [head, await app.detail(head)])));
    if (!latest()) return;
    if (!chart) { chart = app.chart(name, place); panel.made?.(chart); }
    const { data, said, columns, numbers, height, signals, empty } = panel.rows(details);
    place.hidden = empty === true;
    for (const [signal, value] of Object.entries(signals ?? {})) chart.signal(signal, value);
    for (const [set, rows] of Object.entries(data)) chart.set(set, rows);
    if (height) chart.height(height);
    if (!empty) await chart.draw();
    if (!latest()) return;
    const unread = [...details.keys()].filter((head) => details.get(head) === null);
    words.textContent = unread.length ? app.notRead(unread) : said;
    place.setAttribute("aria-label", words.textContent || section.dataset.title);
    const open = table?.open;
    table?.remove();
    if (columns) { table = app.numbers(columns, numbers); section.append(table); if (open) table.open = true; }
  };
  const redraw = app.inView(section, draw, fold);
  const panel = make(app, extra, redraw);
  const follows = new Set(panel.follows ?? ["heads"]);
  return { update(changed) { return [...changed].some((one) => follows.has(one)) ? redraw() : undefined; } };
}

const runLegend = (app, ids) => (ids.length > 1
  ? app.el("p", { class: "legend" }, ids.map((id, at) => app.el("span", {}, ["solid", "dashed", "dotted", "dash-dotted"][at % 4], ": ", app.runs.get(id)?.name ?? id)))
  : null);

function curvesPanel(app) {
  return chartPanel(app, "curves", "curves", (_, extra) => {
    const all = app.index.curves;
    const legend = runLegend(app, all.map((one) => one.run));
    if (legend) extra.append(legend);
    return { rows(details) {
      const lines = [], bands = [], marks = [], numbers = [], said = [];
      for (const [at, curve] of all.entries()) {
        const last = curve.distance.at(-1);
        if (curve.training_length && curve.training_length <= 2 * last) marks.push({ distance: curve.training_length, text: `training length, ${curve.training_length} tokens` });
        for (const [head, detail] of details) {
          const own = app.own(detail, "curves", curve.run);
          if (!own) continue;
          const series = `${head} ${curve.run}`, colour = app.colourOf(head), waves = curve.wavelength?.[app.layerOf(head)] ?? [];
          for (const [place, distance] of curve.distance.entries()) {
            const value = own.mean[place];
            if (value === null) continue;
            const low = own.null_low?.[place] ?? null, high = own.null_high?.[place] ?? null;
            lines.push({ distance, value, series, colour, dash: at % 4,
              text: `${head}, distance ${app.number(distance, 4)}: mean D ${app.number(value)} (pair ${Math.round(value)}: ${tokens(waves[Math.round(value)])})${low === null ? "" : `; shuffled ${app.number(low)} to ${app.number(high)}`}` });
            if (low !== null) bands.push({ distance, low, high, series, colour });
            numbers.push([head, app.runs.get(curve.run)?.name, distance, value, low, high]);
          }
          const known = own.mean.filter((value, place) => value !== null && curve.distance[place] >= 1);
          if (known.length) said.push(`${head}${all.length > 1 ? ` (${app.runs.get(curve.run)?.name})` : ""}: from pair ${app.number(known[0])} at distance 1 to ${app.number(known.at(-1))} at ${app.number(last, 4)} tokens`);
        }
        if (curve.training_length && curve.training_length > 2 * last && at === 0) said.push(`the training length, ${curve.training_length} tokens, lies beyond this text`);
      }
      if (bands.length) said.push("bands: positions shuffled, mean ± 2 standard deviations of one shuffle at one distance; the excess pools all distances, and can be significant inside the band");
      return { data: { lines, bands, marks }, said: said.join("; "), columns: ["head", "run", "distance", "mean D", "null low", "null high"], numbers: () => numbers };
    } };
  });
}

function massPanel(app) {
  return chartPanel(app, "mass", "mass", (_, extra) => {
    const legend = runLegend(app, app.index.masses.map((one) => one.run));
    if (legend) extra.append(legend);
    return { rows(details) {
      const lines = [], said = [];
      for (const [at, mass] of app.index.masses.entries()) {
        const names = rangeNames(mass.edges);
        for (const [head, detail] of details) {
          const shares = app.own(detail, "mass", mass.run) ?? [];
          shares.forEach((value, order) => {
            if (value !== null) lines.push({ range: names[order], order: mass.edges[order], value, series: `${head} ${mass.run}`, colour: app.colourOf(head), dash: at % 4,
              text: `${head}, ${names[order]} tokens away: ${app.number(100 * value)} % of the attention` });
          });
          let sum = 0;
          const half = shares.findIndex((share) => { sum += share ?? 0; return sum >= 0.5; });
          if (half >= 0) said.push(`${head}${app.index.masses.length > 1 ? ` (${app.runs.get(mass.run)?.name})` : ""}: half of its attention lies within ${mass.edges[half + 1] - 1} tokens`);
        }
      }
      if (said.length) said.push("ranges get wider with distance", ...new Set(app.index.masses.map((mass) => mass.title)));
      return { data: { lines }, said: said.join("; "), columns: ["head", "tokens away", "share of attention"], numbers: () => lines.map((row) => [row.series.split(" ")[0], row.range, row.value]) };
    } };
  });
}

function pairsPanel(app) {
  return chartPanel(app, "pairs", "pairs", (_, extra, again) => {
    const all = app.index.pairs;
    const select = app.el("select", { "aria-label": "Run", onchange: () => again() }, all.map((one) => app.el("option", { value: one.run }, app.runs.get(one.run)?.name ?? one.run)));
    const legend = app.el("div");
    extra.append(...[all.length > 1 ? select : null, legend].filter(Boolean));
    return { follows: ["heads", "focus", "scheme"], rows(details) {
      const pairs = all.find((one) => one.run === select.value) ?? all[0], head = app.state.focus;
      const values = app.own(details.get(head), "contribution", pairs.run) ?? [], names = rangeNames(pairs.edges), waves = pairs.wavelength[app.layerOf(head ?? "L0H0")];
      const most = Math.max(1e-12, ...values.flat().filter((value) => value !== null).map(Math.abs));
      const cells = values.flatMap((row, pair) => row.map((value, order) => ({ pair, range: names[order], order: pairs.edges[order], value, colour: app.ramp(value, -most, most, "diverging"),
        text: `${head}, pair ${pair} (${tokens(waves[pair])}), ${names[order]} tokens away: ${app.number(value)}` }))).filter((cell) => cell.value !== null);
      legend.replaceChildren(values.length ? app.legend(-most, most, "diverging", `${head}: mean contribution to the attention score`) : "");
      const best = cells.reduce((found, cell) => (Math.abs(cell.value) > Math.abs(found?.value ?? 0) ? cell : found), null);
      return { data: { cells }, height: Math.max(200, 8 * values.length + 60), empty: !best, said: best ? `Largest: ${best.text}` : "No contributions of this head in these results.",
        columns: ["pair", "wavelength", ...names], numbers: () => values.map((row, pair) => [String(pair), waves[pair], ...row]) };
    } };
  });
}

function effectsPanel(app) {
  return chartPanel(app, "effects", "effects", (_, extra) => {
    const all = app.index.effects;
    const short = (effect) => `${effect.measure}, ${effect.range}`;
    const unique = new Set(all.map(short)).size === all.length;
    const title = (effect) => (unique ? short(effect) : `${effect.title} (${app.runs.get(effect.run)?.name ?? effect.run}, ${effect.range})`);
    extra.append(...all.map((effect) => app.el("p", { class: "soft" }, effect.meaning)));
    const every = all.flatMap((effect) => effect.values.map((value, number) => ({ value, low: effect.intervals?.low[number] ?? value, high: effect.intervals?.high[number] ?? value, name: app.index.heads[number], study: title(effect), text: `${app.index.heads[number]}: ${app.number(value)} ${effect.unit}` })).filter((row) => row.value !== null));
    return {
      ofPage: true,
      made(chart) { chart.set("every", every).set("studies", all.map((effect) => ({ study: title(effect) }))).height(50 + 70 * all.length).click((datum, event) => { if (datum?.name) app.choose(datum.name, event.shiftKey); }); },
      rows() {
        const chosen = app.state.heads.flatMap((head) => all.map((effect) => {
          const at = app.place.get(head), value = effect.values[at], low = effect.intervals?.low[at] ?? null, high = effect.intervals?.high[at] ?? null;
          return { name: head, value, low: low ?? value, high: high ?? value, study: title(effect), colour: app.colourOf(head),
            text: `${head}: ${app.number(value)} ${effect.unit}${low === null ? "" : ` (95 %: ${app.number(low)} to ${app.number(high)})`}` };
        })).filter((row) => row.value !== null);
        return { data: { chosen }, said: chosen.map((row) => `${row.study}: ${row.text}`).join("; ") || "The chosen heads were not ablated alone.",
          columns: ["head", "study", "effect", "low", "high"], numbers: () => chosen.map((row) => [row.name, row.study, row.value, row.low, row.high]) };
      },
    };
  });
}

function extensionsPanel(app) {
  return chartPanel(app, "extensions", "extensions", (_, extra, again) => {
    const all = app.index.extensions;
    const select = app.el("select", { "aria-label": "Study", onchange: () => again() }, all.map((one, at) => app.el("option", { value: at }, one.title)));
    const legend = app.el("p", { class: "legend", role: "group", "aria-label": "Methods shown" });
    extra.append(...[all.length > 1 ? select : null, legend].filter(Boolean));
    const hidden = new Set();
    const PALETTE = ["#7f7f7f", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1"];
    return { follows: ["heads", "focus"], rows(details) {
      const study = all[Number(select.value || 0)], of = (name) => app.own(details.get(name), "extension", study.run) ?? {};
      const head = [app.state.focus, ...app.state.heads].find((name) => Object.keys(of(name)).length) ?? app.state.focus, own = of(head);
      const lines = [];
      study.methods.forEach((method, at) => {
        const values = Object.hasOwn(own, method) && !hidden.has(method) ? own[method] : [];
        values.forEach((value, place) => {
          if (value !== null) lines.push({ distance: study.distance[place], value, series: method, colour: PALETTE[at % PALETTE.length], dash: Math.floor(at / PALETTE.length),
            text: `${method}, distance ${app.number(study.distance[place], 4)}: pair ${app.number(value)}` });
        });
      });
      const studied = Object.keys(own).length > 0;
      legend.replaceChildren(...(studied ? study.methods : []).map((method, at) => app.el("button", { type: "button", class: "chip", "aria-pressed": !hidden.has(method), "data-method": method, onclick: () => {
        if (!hidden.delete(method)) hidden.add(method);
        again();
      } }, app.el("span", { class: at < PALETTE.length ? "dot" : "dot ring", style: { background: PALETTE[at % PALETTE.length], borderColor: PALETTE[at % PALETTE.length] } }), method)));
      const marks = study.training_length ? [{ distance: study.training_length, text: `training length, ${study.training_length} tokens` }] : [];
      return { data: { lines, bands: [], marks }, empty: !studied,
        said: studied ? `${head}; the upright line is the training length of the study, ${app.number(study.training_length, 5)} tokens. Choose a method to hide or show it.` : `${head} was not studied; studied were ${study.heads.join(", ")}.`,
        columns: ["method", "distance", "mean D"], numbers: () => lines.map((row) => [row.series, row.distance, row.value]) };
    } };
  });
}

function comparedPanel(app) {
  return chartPanel(app, "compared", "compared", (_, extra, again) => {
    const all = app.index.comparisons.flatMap((comparison) => comparison.rows.map((row) => ({ ...row, names: comparison.names })));
    const select = app.el("select", { "aria-label": "Comparison", onchange: () => again() }, all.map((one, at) => app.el("option", { value: at }, `${one.name}: ${one.names[0]} and ${one.names[1]}`)));
    extra.append(select);
    const point = (row, name) => {
      const at = app.place.get(name);
      return { name, a: row.a[at], b: row.b[at], change: row.change[at], q: row.q?.[at] ?? null,
        text: `${name}: ${app.number(row.a[at])} in ${row.names[0]}, ${app.number(row.b[at])} in ${row.names[1]}` };
    };
    const known = (one) => one.a !== null && one.b !== null;
    let drawn = null;
    return {
      ofPage: true,
      made(chart) { chart.click((datum, event) => { if (datum?.name) app.choose(datum.name, event.shiftKey); }); },
      rows() {
        const row = all[Number(select.value || 0)], data = {};
        if (drawn !== row) {
          drawn = row;
          data.every = app.index.heads.map((name) => point(row, name)).filter(known);
          const values = data.every.flatMap((one) => [one.a, one.b]);
          const ends = values.length ? [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))] : [];
          data.diagonal = ends.map((end) => ({ a: end, b: end }));
        }
        const chosen = app.state.heads.map((name) => ({ ...point(row, name), colour: app.colourOf(name) })).filter(known);
        return { data: { ...data, chosen }, signals: { a_title: `${row.name}: ${row.names[0]}`, b_title: row.names[1] },
          said: `Across: ${row.name} in ${row.names[0]}; upwards: in ${row.names[1]}. ${chosen.map((one) => `${one.text}, change ${app.number(one.change)}${one.q === null ? "" : `, q ${app.number(one.q)}`}`).join("; ")}`,
          columns: ["head", ...row.names, "change", "q"], numbers: () => chosen.map((one) => [one.name, one.a, one.b, one.change, one.q]) };
      },
    };
  });
}
