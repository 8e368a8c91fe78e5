// The text, token by token: which keys a query token attends to, and which rotary pair dominates each.
const WINDOW = 512;  // tokens shown at a time
const MOST_LISTED = 10;

// Whole numbers of 16 bits, little-endian, in base64.
const wholeNumbers = (code) => {
  const view = new DataView(Uint8Array.from(atob(code), (one) => one.charCodeAt(0)).buffer);
  return Uint16Array.from({ length: view.byteLength / 2 }, (_, at) => view.getUint16(2 * at, true));
};

// The keys of each query of a head on a text, the one with most attention first.
const decodedKeys = (text, numbers) => {
  const [counts, keys, attention, dominant] = ["counts", "keys", "attention", "dominant"].map((name) => wholeNumbers(numbers[name]));
  const starts = new Uint32Array(counts.length + 1);
  counts.forEach((count, query) => { starts[query + 1] = starts[query] + count; });
  return {
    counts,
    row: (query) => Array.from({ length: counts[query] ?? 0 }, (_, order) => {
      const at = starts[query] + order;
      return {
        key: keys[at], distance: query - keys[at], attention: attention[at] / 65535,
        dominant: dominant[at] === 65535 ? null : (dominant[at] / 65534) * (text.pairs - 1),
      };
    }),
  };
};

// Where a text is found, as first and last token; tokens are searched as one text, in which · is a space.
const foundTokens = (tokens, sought) => {
  const small = tokens.map((token) => token.toLowerCase()), needle = sought.toLowerCase().replaceAll(" ", "·");
  if (!needle) return [];
  const ends = [], whole = small.join("");
  small.reduce((length, token) => { ends.push(length + token.length); return length + token.length; }, 0);
  const hits = [];
  let first = 0;
  for (let at = whole.indexOf(needle); at >= 0; at = whole.indexOf(needle, at + 1)) {
    while (ends[first] <= at) first += 1;
    let last = first;
    while (ends[last] < at + needle.length) last += 1;
    if (hits.at(-1)?.[0] !== first) hits.push([first, last]);
  }
  return hits;
};

const COLOURED = {
  attention: { name: "attention", of: (one) => one.attention, unit: "share of the query's attention", zero: true },
  logarithm: { name: "attention, logarithmic", of: (one) => Math.log10(one.attention), shown: (value) => 10 ** value, unit: "share of the query's attention, on a logarithmic scale" },
  dominant: { name: "dominant pair", of: (one) => one.dominant, unit: "dominant pair; 0 turns fastest" },
};

function tokensPanel(app) {
  const { el, by, index } = app;
  const texts = new Map(index.texts.map((text) => [text.id, text]));
  const decoded = new Map();
  let start = 0, cursor = null, hits = [], hit = -1, drawn = { text: null, start: null };
  let spans = [];
  let shown = { text: null, head: null, query: null, row: [], byKey: new Map() };

  const button = (words, onclick, more = {}) => el("button", { type: "button", onclick, ...more }, words);
  // The text that was chosen, or else the first that has a chosen head. Until its numbers have come, another is shown.
  const chosenText = () => texts.get(app.state.text) ?? [app.state.focus, ...app.state.heads].map((head) => index.texts.find((one) => one.heads.includes(head))).find(Boolean) ?? index.texts[0];
  const text = () => shown.text ?? chosenText();
  const select = el("select", { id: "tokens-text", "aria-label": "Text", onchange: () => app.set({ text: select.value }) },
    index.texts.map((one) => el("option", { value: one.id }, `${one.title} (${app.runs.get(one.run)?.name ?? one.run})`)));
  const heads = el("div", { class: "chips", role: "group", "aria-label": "Heads recorded on this text" });
  const colour = el("select", { id: "tokens-colour", "aria-label": "Colour keys by", onchange: () => paint() },
    Object.entries(COLOURED).map(([value, one]) => el("option", { value }, one.name)));
  const back = button("Previous", () => turn(start - WINDOW), { "aria-label": "Previous tokens" }), on = button("Next", () => turn(start + WINDOW), { "aria-label": "Next tokens" });
  const place = el("span", { id: "tokens-window" });
  const jump = el("input", { type: "number", class: "short", min: 0, step: 1, inputmode: "numeric", id: "tokens-jump", "aria-label": "Go to the token at position" });
  const find = el("input", { type: "search", id: "tokens-find", placeholder: "find in the text", "aria-label": "Find in the text", autocomplete: "off", spellcheck: "false" });
  const found = el("output", { id: "tokens-found", class: "soft" });
  const before = button("‹", () => step(-1), { "aria-label": "Previous hit" }), after = button("›", () => step(1), { "aria-label": "Next hit" });
  const legend = el("div"), readout = el("p", { id: "tokens-readout", class: "soft" }), notes = el("div");
  const run = el("div", { class: "token-run", id: "tokens-run", role: "listbox", tabindex: 0, "aria-label": "Tokens of the text; the chosen one is the query" });
  const kept = el("p", { id: "tokens-kept" }), list = el("div", { class: "scroll", tabindex: 0, role: "region" });
  const body = el("div", { inert: true }, el("p", { class: "controls" }, el("label", {}, "colour ", colour), back, place, on, el("label", {}, "go to ", jump)),
    el("p", { class: "controls" }, find, before, after, found), 
    el("p", { class: "soft" }, "Click a token to make it the query, or move with the arrow keys: left and right by one token, up and down by ten. The keys that it attends to are coloured."),
    legend, run, readout, kept, list);
  by("tokens").append(...[index.texts.length > 1 ? el("p", { class: "controls" }, select) : null, heads, notes, body].filter(Boolean));

  const wave = (dominant) => {
    const layer = app.layerOf(shown.head), fits = (one) => one.wavelength?.[layer]?.length === text().pairs;
    const known = [...index.pairs, ...index.curves].find(fits);
    return known && dominant !== null ? tokens(known.wavelength[layer][Math.round(dominant)]) : null;
  };
  const pair = (dominant) => (dominant === null ? "dominant pair unknown" : `dominant pair ${app.number(dominant)}${wave(dominant) ? ` (${wave(dominant)})` : ""}`);
  const share = (value) => `${app.number(100 * value)} %`;
  const described = (at) => {
    const one = shown.byKey.get(at), name = `token ${at}, “${text().tokens[at]}”`;
    if (at === shown.query && !one) return `The query: ${name}.`;
    if (one) return `${at === shown.query ? "The query itself: " : ""}${name}: ${one.distance} tokens back, ${share(one.attention)} of the attention, ${pair(one.dominant)}.`;
    return `${name}: ${at > shown.query ? "after the query, which does not see it" : "not among the keys kept of this query"}.`;
  };
  const said = (at) => { readout.textContent = described(at); };

  // Colours of the window's tokens, and what a screen reader hears of them.
  const paint = () => {
    const kind = COLOURED[colour.value], values = shown.row.map(kind.of).filter((value) => value !== null && Number.isFinite(value));
    const high = values.reduce((a, b) => Math.max(a, b), -Infinity), low = kind.zero ? 0 : values.reduce((a, b) => Math.min(a, b), Infinity);
    const outer = kind.shown ?? ((value) => value);
    legend.replaceChildren(values.length ? app.legend(outer(low), outer(high), "sequential", kind.unit) : "");
    for (const token of spans) {
      const at = Number(token.dataset.at), one = shown.byKey.get(at), value = one ? kind.of(one) : null;
      const ground = value === null || !Number.isFinite(value) ? "" : app.ramp(value, low, high, "sequential");
      token.style.background = ground;
      token.style.color = ground ? app.ink(ground) : "";
      token.classList.toggle("later", shown.query !== null && at > shown.query);
      token.classList.toggle("query", at === shown.query);
      token.classList.toggle("cursor", at === cursor);
      token.setAttribute("aria-selected", at === shown.query);
    }
    const active = by(`token-${cursor ?? shown.query}`);
    if (active) run.setAttribute("aria-activedescendant", active.id); else run.removeAttribute("aria-activedescendant");
  };
  const fill = () => {
    const { tokens: all, id } = text();
    start = Math.max(0, Math.min(start, Math.floor((all.length - 1) / WINDOW) * WINDOW));
    const end = Math.min(start + WINDOW, all.length);
    place.textContent = `tokens ${start} to ${end - 1} of ${all.length}`;
    back.disabled = start === 0;
    on.disabled = end === all.length;
    jump.max = all.length - 1;
    const one = drawn.text === id && drawn.start === start;
    if (!one) {
      spans = all.slice(start, end).map((token, number) => el("span", { id: `token-${start + number}`, role: "option", "data-at": start + number, class: "token" }, token));
      run.replaceChildren(...spans.flatMap((span) => (span.textContent.endsWith("↵") ? [span, el("br")] : [span])));
      drawn = { text: id, start };
    }
    const inside = new Set(hits.flatMap(([first, last]) => Array.from({ length: last - first + 1 }, (_, number) => first + number)));
    for (const token of spans) token.classList.toggle("hit", inside.has(Number(token.dataset.at)));
    paint();
  };
  const turn = (first) => { start = first; run.scrollTop = 0; fill(); };
  // Into the middle of its own box: the page stays where it is.
  const centre = (at) => {
    const token = by(`token-${at}`);
    if (token && (token.offsetTop < run.scrollTop || token.offsetTop + token.offsetHeight > run.scrollTop + run.clientHeight)) run.scrollTop = token.offsetTop - run.clientHeight / 2;
  };
  const show = (at) => {
    const last = text().tokens.length - 1;
    cursor = Math.max(0, Math.min(at, last));
    start = Math.floor(cursor / WINDOW) * WINDOW;
    fill();
    centre(cursor);
    said(cursor);
  };
  const search = () => {
    hits = foundTokens(text().tokens, find.value);
    hit = -1;
    before.disabled = after.disabled = !hits.length;
    found.textContent = find.value ? `${hits.length} found` : "";
  };
  const step = (way) => {
    if (!hits.length) return;
    hit = hit < 0 ? (way > 0 ? 0 : hits.length - 1) : (hit + way + hits.length) % hits.length;
    found.textContent = `${hit + 1} of ${hits.length} found`;
    show(hits[hit][0]);
    app.say(`Hit ${hit + 1} of ${hits.length}: ${described(cursor)}`);
  };
  const choose = (query) => {
    cursor = null;
    return app.set({ query }).then(() => { if (shown.query === query && !body.hidden && by("tokens").dataset.stale === undefined) app.say(summary()); });
  };
  const summary = () => {
    const [first] = shown.row;
    return `Query token ${shown.query}, “${text().tokens[shown.query]}”${first ? `: most attention, ${share(first.attention)}, goes to token ${first.key}, “${text().tokens[first.key]}”, ${first.distance} tokens back` : ""}.`;
  };

  find.addEventListener("input", () => { search(); fill(); });
  find.addEventListener("keydown", (event) => { if (event.key === "Enter") step(event.shiftKey ? -1 : 1); });
  jump.addEventListener("change", () => { if (/^\d+$/.test(jump.value)) { show(Number(jump.value)); jump.value = cursor; } });
  const under = (event) => { const token = event.target.closest?.("[data-at]"); return token ? Number(token.dataset.at) : null; };
  run.addEventListener("click", (event) => { const at = under(event); if (at !== null) choose(at); });
  run.addEventListener("pointerover", (event) => { const at = under(event); if (at !== null) said(at); });
  run.addEventListener("pointerleave", () => { readout.textContent = shown.head ? summary() : ""; });
  run.addEventListener("keydown", (event) => {
    const at = cursor ?? shown.query ?? start, last = text().tokens.length - 1;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - 10, ArrowDown: at + 10, PageUp: at - WINDOW, PageDown: at + WINDOW, Home: 0, End: last, Enter: at, " ": at }[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const query = Math.max(0, Math.min(to, last));
    choose(query);
  });

  const chips = (one, head, unread) => {
    heads.replaceChildren(...one.heads.map((name) => button(name, () => app.choose(name), { class: "chip", "aria-pressed": String(name === head), "data-head": name, style: { borderColor: app.state.heads.includes(name) ? app.colourOf(name) : "var(--line)" } })));
    const away = head === null ? el("p", { id: "tokens-away" }, unread.length ? app.notRead(unread) : `${app.state.focus ?? "No head"} was not recorded on this text: choose one that was. To record it, in Python: ph.head_examples(model, text, "${app.state.focus ?? index.heads[0]}").save(FOLDER), with a folder beside the other results.`) : null;
    notes.replaceChildren(...one.notes.map((note) => el("p", { class: "note" }, note)), ...[away].filter(Boolean));
    body.hidden = head === null;
    body.inert = false;
  };
  const listed = () => {
    const one = text(), rows = shown.row.slice(0, MOST_LISTED);
    const total = shown.row.reduce((sum, { attention }) => sum + attention, 0);
    const rest = Math.max(0, 1 - total);
    kept.textContent = shown.row.length
      ? `${shown.head}, query token ${shown.query}, “${one.tokens[shown.query]}”: the ${shown.row.length} keys kept get ${share(Math.min(1, total))} of its attention${rest < 0.0005 ? "" : `; ${share(rest)} goes to keys that are not kept`}.`
      : `No keys of token ${shown.query} were kept.`;
    list.setAttribute("aria-label", `The ${rows.length} keys with the most attention`);
    list.replaceChildren(el("table", { id: "tokens-keys" },
      el("thead", {}, el("tr", {}, ["position", "token", "tokens back", "attention", "dominant pair", "wavelength"].map((name) => el("th", { scope: "col", class: name === "token" ? "word" : null }, name)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, el("th", { scope: "row" }, button(String(row.key), () => show(row.key), { "aria-label": `Show token ${row.key}` })),
        el("td", { class: "word" }, one.tokens[row.key]), el("td", {}, String(row.distance)), el("td", {}, share(row.attention)),
        el("td", {}, app.number(row.dominant)), el("td", {}, wave(row.dominant)?.replace(" a turn", "") ?? "–"))))));
  };
  const draw = async (latest) => {
    const one = chosenText(), last = one.tokens.length - 1;
    const chosen = [app.state.focus, ...[...app.state.heads].reverse()], head = chosen.find((name) => one.heads.includes(name)) ?? null;
    const detail = head ? await app.detail(head) : {}, numbers = app.own(detail, "texts", one.id);
    if (!latest()) return;
    select.value = one.id;
    chips(one, numbers ? head : null, detail === null ? [head] : []);
    if (!numbers) return;
    const name = `${one.id} ${head}`;
    if (!decoded.has(name)) decoded.set(name, decodedKeys(one, numbers));
    const keys = decoded.get(name);
    let query = app.state.query === null ? Math.min(WINDOW, one.tokens.length) - 1 : Math.min(app.state.query, last);
    while (app.state.query === null && query > 0 && !keys.counts[query]) query -= 1;
    const moved = query !== shown.query || drawn.text !== one.id;
    if (moved) { start = Math.floor(query / WINDOW) * WINDOW; cursor = null; }
    const row = keys.row(query);
    shown = { text: one, head, query, row, byKey: new Map(row.map((entry) => [entry.key, entry])) };
    if (drawn.text !== one.id) search();
    fill();
    if (moved) centre(query);
    listed();
    readout.textContent = summary();
  };
  search();
  const redraw = app.inView(by("tokens"), draw);
  return {
    update(changed) {
      return ["heads", "focus", "query", "text", "scheme"].some((one) => changed.has(one)) ? redraw() : undefined;
    },
  };
}
