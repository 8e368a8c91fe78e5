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
    const value = (name) => (flagged.lower ? -1 : 1) * flagged.values[app.place.get(name)];
    return known.length ? known.reduce((found, name) => (value(name) > value(found) ? name : found)) : index.heads[0];
  };
  // Charts above it get their height while they are drawn, so it is brought into view again until the reader moves.
  const bring = (part) => {
    let moved = false;
    for (const kind of ["wheel", "touchstart", "keydown", "pointerdown"]) window.addEventListener(kind, () => { moved = true; }, { once: true });
    for (const wait of [0, 150, 400, 900, 1600]) setTimeout(() => { if (!moved) part?.scrollIntoView(); }, wait);
  };
  const visit = (address) => {
    const asked = app.read(window.location.hash);
    const heads = asked.heads.length ? asked.heads : app.state.heads.length && window.location.hash ? app.state.heads : [best()];
    // An address says all: what it leaves out is as it is at first.
    app.set({ heads, focus: asked.focus ?? heads.at(-1), measure: asked.measure ?? index.rank_by, query: asked.query, text: asked.text }, { push: false, address });
    if (asked.unknown.length) app.say(`No head ${asked.unknown[0]}.`);
    if (asked.part && /^[a-z]+$/.test(asked.part)) bring(by(`${asked.part}-part`));
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
