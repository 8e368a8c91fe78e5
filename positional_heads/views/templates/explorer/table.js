// Every head as a row: sort by any column, filter, choose several.
function tablePanel(app, atlas) {
  const { el, by, index } = app;
  const PAGE = 50;
  const FIRST = ["excess", "rho", "q_value", "reach", "sink_mass", "induction", "retrieval"];
  const label = app.title;
  const ranked = app.measures.get(index.rank_by);
  let columns = [ranked.id, ...FIRST.map((name) => index.measures.find((one) => one.name === name && one.run === ranked.run)
    ?? index.measures.find((one) => one.name === name)).filter((one) => one && one.id !== ranked.id).map((one) => one.id)];
  let order = { by: ranked.id, falling: true }, page = 0;
  const word = el("input", { type: "search", id: "filter", placeholder: "L7H8, layer 7, induction", autocomplete: "off", spellcheck: "false" });
  const least = el("input", { type: "number", step: "any", id: "least", class: "short" });
  const most = el("input", { type: "number", step: "any", id: "most", class: "short" });
  // Verdicts of the run whose measure is shown, or else of the one that ranks.
  const flag = (name) => [app.measures.get(app.state.measure), ranked].map((shown) => index.measures.find((one) => one.name === name && one.run === shown?.run)).find(Boolean);
  const FLAGS = new Map([["beats_null", ["beating", " beats its null"]], ["stays", ["staying", " stays without the first keys"]]].filter(([name]) => index.measures.some((one) => one.name === name))
    .map(([name, [id, words]]) => [name, { box: el("input", { type: "checkbox", id }), words }]));
  const count = el("output", { class: "soft" });
  const body = el("tbody"), head = el("thead");
  const table = el("table", { id: "heads-table" }, el("caption", { class: "visually-hidden" }, "All heads"), head, body);
  const back = el("button", { type: "button", onclick: () => { page -= 1; draw(); } }, "Previous"), next = el("button", { type: "button", onclick: () => { page += 1; draw(); } }, "Next");
  const where = el("span", { class: "soft" });
  const chooser = el("details", { class: "columns" }, el("summary", {}, "Columns"), el("div", { class: "choices" }, index.measures.map((measure) => {
    const box = el("input", { type: "checkbox", "data-measure": measure.id });
    box.checked = columns.includes(measure.id);
    box.addEventListener("change", () => {
      columns = box.checked ? [...columns, measure.id] : columns.filter((one) => one !== measure.id);
      draw();
    });
    return el("label", { title: measure.meaning }, box, ` ${label(measure)}`);
  })));
  const shownName = el("span", { class: "measure-name" });
  by("table").append(
    el("p", { class: "controls" }, el("label", { for: "filter" }, "Filter "), word,
      [...FLAGS.values()].map(({ box, words }) => el("label", {}, box, words)),
      el("label", { for: "least" }, shownName, " from "), least, el("label", { for: "most" }, " to "), most, count),
    chooser, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of heads" }, table),
    el("p", { class: "controls" }, back, next, where));
  const matches = (name, number) => {
    const wanted = word.value.trim().toLowerCase();
    const names = index.names?.[number] ?? (index.is ? [index.is[number]] : []);
    const said = [name, ...names].join("\n").toLowerCase();
    // layer 7, or words that the name or what the head is must hold, each of them
    for (const word of wanted.replace(/layer\s+(?=\d)/g, "l").split(/[\s,]+/).filter(Boolean)) {
      const layer = word.match(/^l(\d+)$/);
      if (layer ? app.layerOf(name) !== Number(layer[1]) : !said.includes(word)) return false;
    }
    for (const [verdict, { box }] of FLAGS) if (box.checked && !(flag(verdict)?.values[number] > 0)) return false;
    const value = app.measures.get(app.state.measure).values[number];
    if (least.value === "" && most.value === "") return true;
    if (value === null || (least.value !== "" && value < Number(least.value))) return false;
    return most.value === "" || value <= Number(most.value);
  };
  const sorted = () => {
    const kept = index.heads.map((name, number) => number).filter((number) => matches(index.heads[number], number));
    const values = app.measures.get(order.by)?.values;
    const sign = order.falling ? -1 : 1;
    if (order.by === "is") kept.sort((a, b) => sign * index.is[a].localeCompare(index.is[b]) || a - b);
    else if (values) {
      const known = (number) => values[number] !== null && values[number] !== undefined;
      kept.sort((a, b) => (known(b) - known(a)) || (known(a) ? sign * (values[a] - values[b]) : 0) || a - b);
    } else if (order.falling) kept.reverse();
    return kept;
  };
  const sortBy = (column) => {
    order = { by: column, falling: order.by === column ? !order.falling : column !== "name" && column !== "is" && !app.measures.get(column)?.lower };
    page = 0;
    draw();
  };
  const heading = (id, text, title) => el("th", { scope: "col", "aria-sort": order.by === id ? (order.falling ? "descending" : "ascending") : "none" },
    el("button", { type: "button", title, "data-column": id, onclick: () => sortBy(id) }, text, order.by === id ? (order.falling ? " ↓" : " ↑") : ""));
  const lines = new Map();
  // The measure that colours the atlas stands first, and then those that were chosen.
  const shownColumns = () => [app.state.measure, ...columns.filter((id) => id !== app.state.measure)];
  const draw = () => {
    const kept = sorted(), last = Math.max(0, Math.ceil(kept.length / PAGE) - 1);
    page = Math.min(Math.max(page, 0), last);
    const shown = kept.slice(page * PAGE, (page + 1) * PAGE);
    head.replaceChildren(el("tr", {}, heading("name", "head", "name"), index.is ? heading("is", "is", "what the head is by the first rule that holds") : null,
      shownColumns().map((id) => heading(id, label(app.measures.get(id)), app.measures.get(id).meaning))));
    lines.clear();
    body.replaceChildren(...shown.map((number) => {
      const name = index.heads[number];
      const row = el("tr", {}, el("th", { scope: "row" }, el("button", { type: "button", "data-head": name,
        onclick: (event) => app.choose(name, event.shiftKey || event.ctrlKey || event.metaKey || app.state.adding) }, name)),
      index.is ? el("td", { class: "word" }, (index.names?.[number] ?? [index.is[number]]).join(", ")) : null,
      shownColumns().map((id) => {
        const measure = app.measures.get(id), value = measure.values[number];
        const low = measure.intervals?.low[number], high = measure.intervals?.high[number];
        const known = low !== null && low !== undefined;
        return el("td", { title: known ? `95 %: ${app.number(low)} to ${app.number(high)}` : null },
          measure.scale === "flag" ? (value === null ? "–" : value ? "yes" : "no") : app.number(value));
      }));
      lines.set(name, row);
      return row;
    }));
    count.textContent = `${kept.length} of ${index.heads.length} heads`;
    where.textContent = kept.length ? `${page * PAGE + 1} to ${page * PAGE + shown.length} of ${kept.length}` : "No head: change the filter";
    back.disabled = page === 0;
    next.disabled = page === last;
    mark();
  };
  const mark = () => {
    for (const [name, row] of lines) {
      const at = app.state.heads.includes(name);
      row.classList.toggle("chosen", at);
      row.style.setProperty("--own", at ? app.colourOf(name) : "transparent");
      row.querySelector("button").setAttribute("aria-pressed", at);
    }
  };
  const filter = () => {
    page = 0;
    draw();
    const all = index.heads.filter(matches);
    return atlas.filter(all.length === index.heads.length ? null : new Set(all));
  };
  for (const input of [word, least, most, ...[...FLAGS.values()].map(({ box }) => box)]) input.addEventListener("input", filter);
  word.addEventListener("keydown", (event) => {
    const name = word.value.trim().toUpperCase();
    if (event.key === "Enter" && app.place.has(name)) app.choose(name, event.shiftKey);
  });
  return {
    async update(changed) {
      if (changed.has("measure")) {
        shownName.textContent = app.title(app.measures.get(app.state.measure));
        const limited = least.value !== "" || most.value !== "" || [...FLAGS.values()].some(({ box }) => box.checked);
        least.value = most.value = "";  // limits of another measure
        order = { by: app.state.measure, falling: !app.measures.get(app.state.measure).lower };
        page = 0;
        if (limited) await filter();
        else draw();
      }
      if (changed.has("heads")) mark();
    },
  };
}
