// Start: fill every part for which the results have numbers, then show what the address asks for.
{
  const { by, index } = app;
  const atlas = atlasPanel(app);
  app.panels.push(atlas, tablePanel(app, atlas), headsPanel(app));
  const parts = [
    ["curves", index.curves, curvesPanel], ["pairs", index.pairs, pairsPanel], ["mass", index.masses, massPanel],
    ["effects", index.effects, effectsPanel], ["extensions", index.extensions, extensionsPanel],
    ["compared", index.comparisons, comparedPanel], ["tokens", index.texts, tokensPanel], ["whatif", index.series, whatifPanel],
  ];
  for (const [id, numbers, make] of parts) {
    if (numbers.length) app.panels.push(make(app));
    else by(`${id}-part`).remove();
  }
  const flagged = index.measures.find((one) => one.id === index.rank_by);
  const best = () => {
    const known = index.heads.filter((name) => flagged.values[app.place.get(name)] !== null);
    return known.length ? known.reduce((found, name) => (flagged.values[app.place.get(name)] > flagged.values[app.place.get(found)] ? name : found)) : index.heads[0];
  };
  const visit = (address) => {
    const asked = app.read(window.location.hash);
    const heads = asked.heads.length ? asked.heads : app.state.heads.length ? app.state.heads : [best()];
    const shown = app.set({ heads, focus: heads.at(-1), measure: asked.measure ?? app.state.measure ?? index.rank_by, query: asked.query, text: asked.text ?? app.state.text }, { push: false, address });
    if (asked.part && /^[a-z]+$/.test(asked.part)) by(`${asked.part}-part`)?.scrollIntoView();
    return shown;
  };
  window.addEventListener("hashchange", () => { if (window.location.hash !== app.written) visit(false); });
  window.addEventListener("popstate", () => { if (window.location.hash !== app.written) visit(false); });
  const recoloured = () => {
    app.forgetColours();
    return Promise.all(app.panels.map((panel) => panel.update(new Set(["measure", "scheme"]))));
  };
  app.dark.addEventListener("change", recoloured);
  app.printing.addEventListener("change", recoloured);
  visit(false);
}
