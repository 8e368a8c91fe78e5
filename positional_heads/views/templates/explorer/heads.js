// The chosen heads: what each is, in words and in every measure.
function headsPanel(app) {
  const { el, by, index } = app;
  const find = el("input", { type: "search", id: "find", placeholder: "L7H8", autocomplete: "off", spellcheck: "false", list: "head-names", "aria-label": "Show a head by name" });
  const several = el("input", { type: "checkbox", id: "adding" });
  several.addEventListener("change", () => { app.state.adding = several.checked; });
  const chips = el("div", { class: "chips", role: "group", "aria-label": "Chosen heads" });
  const sentence = el("p", { class: "verdict", id: "sentence" });
  const facts = el("details", { class: "facts" }, el("summary", {}, "Every measure of this head"));
  const said = el("output", { class: "soft" });
  const link = el("button", { type: "button", onclick: async () => {
    const address = window.location.href.split("#")[0] + app.fragment();
    if (window.location.protocol === "about:") { said.textContent = app.fragment(); return; }  // a frame has no address
    try { await navigator.clipboard.writeText(address); said.textContent = "Address copied."; } catch { said.textContent = address; }
  } }, "Copy address");
  const go = () => {
    const name = find.value.trim().toUpperCase();
    if (app.place.has(name)) { app.choose(name, several.checked); find.value = ""; said.textContent = ""; } else if (name) said.textContent = `No head ${name}: names go from ${index.heads[0]} to ${index.heads.at(-1)}.`;
  };
  find.addEventListener("keydown", (event) => { if (event.key === "Enter") go(); });
  find.addEventListener("change", () => { if (app.place.has(find.value.trim().toUpperCase())) go(); });
  by("heads").append(
    el("p", { class: "controls" }, find, el("button", { type: "button", onclick: go }, "Show"),
      el("label", {}, several, " choose several"), el("button", { type: "button", onclick: () => app.set({ heads: app.state.focus ? [app.state.focus] : [] }) }, "Only this"), link, said),
    chips, sentence, facts);
  // On a phone the atlas and what belongs to a cell are screens apart.
  const jump = el("button", { type: "button", class: "jump", onclick: () => {
    const away = by("heads-part").getBoundingClientRect().top;
    by(away > 20 || away < -20 ? "heads-part" : "atlas-part").scrollIntoView();
  } });
  window.document.body.append(jump);
  const drawFacts = () => {
    const number = app.place.get(app.state.focus);
    facts.replaceChildren(facts.firstElementChild, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Every measure of this head" }, el("table", {},
      el("thead", {}, el("tr", {}, ["measure", "value", "95 %", "rank", "unit", "run"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, index.measures.filter((measure) => measure.values[number] !== null).map((measure) => {
        const value = measure.values[number], low = measure.intervals?.low[number] ?? null, high = measure.intervals?.high[number] ?? null;
        const above = measure.values.filter((one) => one !== null && (measure.lower ? one < value : one > value)).length;
        return el("tr", { title: measure.meaning }, el("th", { scope: "row" }, measure.title),
          el("td", {}, measure.scale === "flag" ? (value ? "yes" : "no") : app.number(value)),
          el("td", {}, low === null ? "–" : `${app.number(low)} to ${app.number(high)}`),
          el("td", {}, measure.scale === "flag" ? "" : `${above + 1} of ${measure.values.filter((one) => one !== null).length}`),
          el("td", { class: "word" }, measure.unit), el("td", { class: "word" }, app.runs.get(measure.run)?.name ?? ""));
      })))));
  };
  facts.addEventListener("toggle", () => { if (facts.open && app.state.focus) drawFacts(); });
  return {
    update(changed) {
      if (!changed.has("focus") && !changed.has("heads")) return;
      const { heads, focus } = app.state;
      chips.replaceChildren(...heads.map((name) => el("button", { type: "button", class: "chip", "aria-pressed": name === focus, "data-chip": name,
        style: { borderColor: app.colourOf(name) }, onclick: () => app.set({ focus: name }) },
      el("span", { class: "dot", style: { background: app.colourOf(name) } }), name)));
      jump.textContent = focus ? `${focus} ⇅ atlas` : "atlas";
      if (focus) window.document.title = `${focus} · ${index.title}`;
      sentence.textContent = focus ? index.sentences[app.place.get(focus)] : "Choose a head: click a cell of the atlas, or type its name.";
      facts.hidden = !focus;
      if (facts.open && focus) drawFacts();
    },
  };
}
