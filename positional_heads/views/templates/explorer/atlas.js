// Layer by head, coloured by any measure; click, tap, or walk with the arrow keys.
function atlasPanel(app) {
  const { el, by, index } = app;
  const layers = index.model.layers, heads = index.model.heads;
  const select = el("select", { id: "measure", onchange: () => app.set({ measure: select.value }) });
  const several = new Set(index.measures.map((measure) => measure.run)).size > 1;
  const groups = new Map();
  for (const measure of index.measures) {
    if (!groups.has(measure.run)) {
      groups.set(measure.run, several ? el("optgroup", { label: app.runs.get(measure.run)?.name ?? measure.run }) : select);
      if (several) select.append(groups.get(measure.run));
    }
    groups.get(measure.run).append(el("option", { value: measure.id }, app.title(measure)));
  }
  const legend = el("div"), meaning = el("p", { class: "soft" });
  const canvas = el("div", { id: "atlas-chart", class: "chart", tabindex: 0, role: "application",
    "aria-label": `Atlas of ${layers} layers by ${heads} heads. Arrow keys walk, Enter chooses, Shift and Enter adds; the table has the same numbers.` });
  by("atlas").append(el("p", { class: "controls" }, el("label", { for: "measure" }, "Colour by "), select), legend, canvas, meaning);
  let cursor = null, filtered = null;
  const chart = app.chart("atlas", canvas).click((datum, event) => {
    if (!datum?.name) return;
    cursor = datum.name;
    app.choose(datum.name, event.shiftKey || event.ctrlKey || event.metaKey || app.state.adding);
  });
  const cell = Math.max(7, Math.min(20, Math.round(620 / layers)));
  const at = (name) => ({ name, layer: app.layerOf(name), head: Number(name.slice(name.indexOf("H") + 1)) });
  const rows = () => {
    const measure = app.measures.get(app.state.measure);
    return index.heads.map((name, number) => ({
      ...at(name),
      colour: app.shade(measure, measure.values[number]),
      shown: !filtered || filtered.has(name) ? 1 : 0.15,
      text: `${name}  ${measure.title} ${app.number(measure.values[number])}${measure.unit ? ` ${measure.unit}` : ""}${index.is ? `  ${index.is[number]}` : ""}`,
    }));
  };
  const chosen = () => app.state.heads.map((name) => ({ ...at(name), colour: app.colourOf(name) }));
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -heads], End: [0, heads] };
    const from = at(cursor ?? app.state.focus ?? index.heads[0]);
    if (Object.hasOwn(moves, event.key)) {
      event.preventDefault();
      const [down, right] = moves[event.key];
      const to = cursor === null ? from : { layer: Math.min(layers - 1, Math.max(0, from.layer + down)), head: Math.min(heads - 1, Math.max(0, from.head + right)) };
      cursor = `L${to.layer}H${to.head}`;
      const measure = app.measures.get(app.state.measure);
      app.say(`${cursor}, ${measure.title} ${app.number(measure.values[app.place.get(cursor)])}`);
      chart.set("cursor", [at(cursor)]).draw();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      app.choose(from.name ?? `L${from.layer}H${from.head}`, event.shiftKey);
    }
  });
  return {
    filter(names) { filtered = names; return this.update(new Set(["measure"])); },
    async update(changed) {
      if (changed.has("measure")) {
        const measure = app.measures.get(app.state.measure);
        select.value = measure.id;
        legend.replaceChildren(app.legend(measure.low, measure.high, measure.scale, [app.title(measure), measure.unit].filter(Boolean).join(", "), measure.lower));
        meaning.textContent = measure.meaning;
        chart.height(cell * layers + 40).set("heads", rows());
      }
      if (changed.has("heads")) chart.set("chosen", chosen()).set("cursor", cursor && app.state.heads.includes(cursor) ? [] : cursor ? [at(cursor)] : []);
      if (changed.has("measure") || changed.has("heads")) await chart.draw();
    },
  };
}
