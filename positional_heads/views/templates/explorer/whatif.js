// What if the rotation were another: the mean score of a head by distance, in closed form, under changed frequencies.
const FAST_TURNS = 32, SLOW_TURNS = 1;  // YaRN's beta_fast and beta_slow
const SLOW_PART = 1, FAST_PART = 4;  // low_freq_factor and high_freq_factor of Llama 3
const MOST_DISTANCES = 257;

const METHODS_OF_ROPE = {
  none: "none", linear: "linear (position interpolation)", ntk: "NTK", dynamic: "dynamic NTK", yarn: "YaRN", llama3: "Llama 3",
};

// Frequencies of all pairs in radians per token, and the factor on cos and sin, as transformers computes them.
function ropeFrequencies({ frequency, base, newBase, method = "none", factor = 1, trainingLength, length }) {
  const pairs = frequency.length;
  const powers = (of) => Array.from({ length: pairs }, (_, pair) => of ** (-pair / pairs));
  const own = base === null ? frequency.map((one) => one ?? 0) : powers(newBase ?? base);
  // another base for NTK: base * stretch ** (r / (r - 2)) with r = 2 * pairs, that is, these factors
  const stretched = (stretch) => own.map((one, pair) => one * stretch ** (-pair / (pairs - 1)));
  if (method === "linear") return { frequency: own.map((one) => one / factor), attentionFactor: 1 };
  if (method === "ntk") return { frequency: stretched(Math.round(factor * trainingLength) / trainingLength), attentionFactor: 1 };
  if (method === "dynamic") {
    const reached = Math.max(length, trainingLength);
    return { frequency: stretched((factor * reached) / trainingLength - (factor - 1)), attentionFactor: 1 };
  }
  if (method === "yarn") {
    const turning = (turns) => (pairs * Math.log(trainingLength / (turns * 2 * Math.PI))) / Math.log(newBase ?? base);
    const low = Math.max(Math.floor(turning(FAST_TURNS)), 0), last = Math.min(Math.ceil(turning(SLOW_TURNS)), 2 * pairs - 1);
    const high = last === low ? low + 0.001 : last;
    return {
      frequency: own.map((one, pair) => {
        const slow = Math.min(1, Math.max(0, (pair - low) / (high - low)));
        return (one / factor) * slow + one * (1 - slow);
      }),
      attentionFactor: factor <= 1 ? 1 : 0.1 * Math.log(factor) + 1,
    };
  }
  if (method === "llama3") {
    return {
      frequency: own.map((one) => {
        const turns = (trainingLength * one) / (2 * Math.PI);  // within the training length
        if (turns < SLOW_PART) return one / factor;
        if (turns > FAST_PART) return one;
        const kept = (turns - SLOW_PART) / (FAST_PART - SLOW_PART);
        return ((1 - kept) * one) / factor + kept * one;
      }),
      attentionFactor: 1,
    };
  }
  return { frequency: own, attentionFactor: 1 };
}

// The mean score at each distance, if every query and key were the mean one: a cosine for each pair.
function meanScore(amplitude, phase, frequency, distances) {
  return distances.map((distance) => amplitude.reduce((sum, size, pair) => sum + size * Math.cos((frequency[pair] ?? 0) * distance + phase[pair]), 0));
}

// Whole distances from 0 up to the last, every one nearby and in proportion farther away.
const spreadDistances = (last) => [...new Set(Array.from({ length: MOST_DISTANCES }, (_, step) => Math.round((last + 1) ** (step / (MOST_DISTANCES - 1)) - 1)))];

function whatifPanel(app) {
  return chartPanel(app, "whatif", "whatif", (_, extra, again) => {
    const { el, index } = app, all = index.series;
    const field = (id, label, of) => el("input", { id: `whatif-${id}`, "aria-label": label, onchange: () => again(), ...of });
    const series = () => all.find((one) => one.run === run.value) ?? all[0];
    const run = el("select", { id: "whatif-run", "aria-label": "Run", onchange: () => { reset(); again(); } }, all.map((one) => el("option", { value: one.run }, app.runs.get(one.run)?.name ?? one.run)));
    const base = field("base", "Base", { type: "number", style: { width: "7.5rem" }, min: 2, step: "any" });
    const slide = el("input", { id: "whatif-base-slider", type: "range", min: 2, max: 8, step: 0.01, "aria-label": "Base, on a logarithmic scale", oninput: () => { base.value = Number((10 ** Number(slide.value)).toPrecision(3)); again(); } });
    const method = el("select", { id: "whatif-method", "aria-label": "Method of extension", onchange: () => again() }, Object.entries(METHODS_OF_ROPE).map(([value, name]) => el("option", { value }, name)));
    const factor = field("factor", "Factor", { type: "number", class: "short", min: 1, max: 1000, step: "any" });
    const times = el("input", { id: "whatif-factor-slider", type: "range", min: 0, max: 6, step: 0.1, "aria-label": "Factor, on a logarithmic scale", oninput: () => { factor.value = Number((2 ** Number(times.value)).toPrecision(3)); again(); } });
    const trained = field("trained", "Training length in tokens", { type: "number", style: { width: "6.5rem" }, min: 2, step: 1 });
    const reach = field("reach", "Largest distance in tokens", { type: "number", style: { width: "6.5rem" }, min: 8, max: 1000000, step: 1 });
    const why = el("p", { class: "soft", id: "whatif-why" }), readout = el("p", { id: "whatif-readout", role: "status" }), legend = el("p", { class: "legend" });
    const reset = () => {
      const one = series();
      base.value = one.base ?? "";
      slide.value = one.base === null ? 5 : Math.log10(one.base);
      factor.value = 4;
      times.value = 2;
      method.value = "none";
      trained.value = one.training_length ?? "";
      reach.value = Math.min(65536, 2 * (one.training_length ?? 2048));
    };
    extra.append(
      el("p", { class: "soft" }, "The mean score of the head by distance, if every query and every key were the mean one: a cosine for each rotary pair, in closed form. The controls change how the pairs turn. Nothing is run: how single queries and keys differ from their mean is left out, and so is what a changed rotation would do to the layers after it. Where the dashed line of what was measured departs from that of the model as it is, the mean says little of this head."),
      el("p", { class: "controls" }, ...[all.length > 1 ? run : null].filter(Boolean), el("label", {}, "base ", base, " ", slide), el("label", {}, "method ", method), el("label", {}, "factor ", factor, " ", times)),
      el("p", { class: "controls" }, el("label", {}, "training length ", trained), el("label", {}, "distances up to ", reach), el("button", { type: "button", id: "whatif-reset", onclick: () => { reset(); again(); } }, "As it is")),
      why, legend, readout);
    reset();
    const number = (input, low, otherwise) => { const value = Number(input.value); return input.value !== "" && Number.isFinite(value) && value >= low ? value : otherwise; };
    const measured = (one, detail) => {
      const edges = index.pairs.find((part) => part.run === one.run)?.edges, values = app.own(detail, "contribution", one.run);
      if (!edges || !values?.length) return [];
      return values[0].map((_, order) => ({ distance: (edges[order] + edges[order + 1] - 1) / 2, value: values.every((row) => row[order] !== null) ? values.reduce((sum, row) => sum + row[order], 0) : null })).filter((point) => point.value !== null);
    };
    const controls = (one) => {
      const reasons = [], untrained = number(trained, 2, null) === null, few = one.pairs < 2;
      base.disabled = slide.disabled = one.base === null;
      if (one.base === null) reasons.push("The frequencies of this model are no powers of one base (or layers differ), so another base and YaRN cannot be tried.");
      if (untrained) reasons.push("NTK, YaRN and Llama 3 need the training length.");
      for (const option of method.options) {
        option.disabled = (option.value === "yarn" && one.base === null) || (untrained && !["none", "linear"].includes(option.value)) || (few && ["ntk", "dynamic"].includes(option.value));
      }
      if (method.selectedOptions[0]?.disabled) method.value = "none";
      factor.disabled = times.disabled = method.value === "none";
      for (const [input, name] of [[base, "base"], [factor, "factor"], [trained, "training length"], [reach, "largest distance"]]) {
        if (!input.disabled && input.value !== "" && !input.checkValidity()) reasons.push(`The ${name} must be from ${input.min}${input.max ? ` to ${input.max}` : " on"}.`);
      }
      if (one.capped) reasons.push("The model caps scores by a tanh, which is left out here.");
      if (one.factor_known === false) reasons.push("The result is of an older version: an attention factor of the model's own YaRN or LongRoPE is left out.");
      why.textContent = reasons.join(" ");
    };
    const extremes = (distances, values) => {
      const high = values.indexOf(values.reduce((a, b) => Math.max(a, b))), low = values.indexOf(values.reduce((a, b) => Math.min(a, b)));
      return `largest ${app.number(values[high])} at distance ${distances[high]}, smallest ${app.number(values[low])} at ${distances[low]}`;
    };
    return { follows: ["heads", "focus"], rows(details) {
      const one = series(), head = app.state.focus, detail = details.get(head), own = app.own(detail, "series", one.run);
      const frequency = head ? one.frequency[app.layerOf(head)] ?? [] : [];
      controls({ ...one, pairs: frequency.length });
      if (number(base, 2, null) !== null) slide.value = Math.log10(number(base, 2, null));
      times.value = Math.log2(number(factor, 1, 1));
      if (!own || !frequency.length) {
        readout.textContent = "";
        legend.replaceChildren();
        return { data: { lines: [], bands: [], marks: [] }, said: `${head ?? "No head"}: no queries and keys were recorded.` };
      }
      const reached = Math.min(number(reach, 8, 2048), Number(reach.max)), distances = spreadDistances(reached);
      const given = { frequency, base: one.base, trainingLength: number(trained, 2, null), length: reached + 1 };
      const changed = ropeFrequencies({ ...given, newBase: number(base, 2, one.base), method: method.value, factor: number(factor, 1, 1) });
      const before = meanScore(own.amplitude, own.phase, ropeFrequencies(given).frequency, distances);
      const after = meanScore(own.amplitude, own.phase, changed.frequency, distances).map((value) => value * changed.attentionFactor ** 2);
      const known = measured(one, detail), colour = app.colourOf(head), grey = "#7f7f7f";
      const line = (of, which, values, dash, at = distances) => values.map((value, order) => ({ distance: at[order], value, series: which, colour: of, dash, text: `${head} ${which}, distance ${app.number(at[order], 5)}: ${app.number(value)}` }));
      const lines = [...line(grey, "as it is", before, 0), ...line(colour, "changed", after, 0), ...line(grey, "measured", known.map((point) => point.value), 1, known.map((point) => point.distance))];
      const names = [["as it is", grey], ["changed", colour], ...(known.length ? [["dashed: measured, mean over the text (as it is)", grey]] : [])];
      legend.replaceChildren(...names.map(([name, of]) => el("span", {}, el("span", { class: "dot", style: { background: of } }), name)));
      const same = method.value === "none" && number(base, 2, one.base) === one.base;
      readout.textContent = `${head} as it is: ${extremes(distances, before)}.${same ? "" : ` Changed: ${extremes(distances, after)}.`}`;
      const marks = given.trainingLength && given.trainingLength <= reached ? [{ distance: given.trainingLength, text: `training length, ${given.trainingLength} tokens` }] : [];
      return { data: { lines, bands: [], marks }, said: "Positive: keys so far away are scored above zero. In units of the attention score, before mask and softmax.",
        columns: ["distance", "as it is", "changed"], numbers: () => distances.map((distance, order) => [distance, before[order], after[order]]) };
    } };
  });
}
