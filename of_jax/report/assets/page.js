// Composes the page's figures of its data; see of_jax/report/page_data.py.
"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = id => document.getElementById(id);
  const element = Figure.element;
  const unique = items => [...new Set(items)];
  const upper = text => text[0].toUpperCase() + text.slice(1);
  const taken = new Set();

  // The same figure has the same link whenever the page is made again.
  function slug(...parts) {
    const base = parts.filter(p => p !== "").join(" ").toLowerCase().replace(/[^a-z0-9.]+/g, "-")
      .replace(/^-|-$/g, "") || "figure";
    let id = base;
    for (let i = 2; taken.has(id) || byId(id); i++) id = `${base}-${i}`;
    taken.add(id);
    return id;
  }

  const runs = data.runs || [], metrics = data.metrics || {};
  const longest = Math.max(1, ...runs.map(r => r.train.steps[r.train.steps.length - 1] || 1));

  function lossRange(chosen) {
    const late = [];
    for (const run of chosen) {
      const last = run.train.steps[run.train.steps.length - 1];
      // The first tenth falls from that of an untrained network and would flatten the rest.
      run.train.steps.forEach((step, i) => {
        const value = run.train.loss[i];
        if (step > last / 10 && value !== null) late.push(Math.min(value, run.untrained_loss + 1));
      });
      late.push(...run.eval.loss.filter(v => v !== null)
        .map(v => Math.min(v, run.untrained_loss + 1)));
    }
    return Axes.range(late, "linear");
  }

  function metricRange(metric, chosen) {
    const about = metrics[metric], form = about.log ? "log" : "linear";
    return Axes.range(chosen.flatMap(r => r.metrics[metric] ? r.metrics[metric].line : []), form,
      about.log && about.largest ? 1 : undefined);
  }

  function lossFigure(condition, chosen, range) {
    const lines = chosen.flatMap(run => [
      { name: `${run.label}, training`, key: run.name, x: run.train.steps, y: run.train.loss,
        colour: run.colour, dash: "solid", faint: true },
      { name: run.label, key: run.name, x: run.eval.steps, y: run.eval.loss, colour: run.colour,
        dash: run.dash, marks: run.eval.steps.length < 60, end: run.end }]);
    return { title: `Loss: validation (dots) and training (faint)${condition && `, ${condition}`}`,
      x: "step", y: data.loss_unit, range, xRange: [0, longest], lines: lines.filter(l => l.x.length) };
  }

  function metricFigure(metric, condition, chosen, range) {
    const about = metrics[metric];
    const lines = chosen.filter(r => r.metrics[metric]).map(run => ({
      name: run.label, key: run.name, x: run.metrics[metric].steps, y: run.metrics[metric].line,
      colour: run.colour, dash: run.dash, end: run.end }));
    return { title: `${upper(about.name)}, ${about.largest ? "largest layer" : "mean over layers"}` +
      `${condition && `, ${condition}`}`, x: "step", y: about.axis, form: about.log ? "log" : "linear",
      range, xRange: [0, longest], lines };
  }

  // The figure of the answer: what decided, and the curves behind it.
  function lead() {
    const place = byId("deciding");
    if (!place || !data.lead) return;
    for (const shown of data.lead.intervals) Figure.show(place, { ...shown, id: slug("answer", shown.title) });
    const analysed = (data.analyses || []).find(item => item.title === data.lead.analysis);
    if (analysed) {
      const shown = panelFigure(analysed.panels[0]);
      Figure.show(place, { ...shown, title: `${shown.title}, ${analysed.run}`, id: slug("answer analysis") });
    }
    const chosen = data.lead.runs.map(i => runs[i]);
    if (!chosen.length) return;
    const said = data.lead.condition;
    if (metrics[data.lead.metric]) {
      Figure.show(place, { ...metricFigure(data.lead.metric, said, chosen,
        metricRange(data.lead.metric, chosen)), id: slug("answer", data.lead.metric) });
    }
    if (chosen.some(r => r.eval.steps.length || r.train.steps.length)) {
      Figure.show(place, { ...lossFigure(said, chosen, lossRange(chosen)), id: slug("answer loss") });
    }
  }

  function claims() {
    for (const place of document.querySelectorAll("[data-claim]")) {
      for (const shown of (data.claims || {})[place.dataset.claim] || []) {
        Figure.show(place, { ...shown, id: slug("claim", place.dataset.claim, shown.title) });
      }
    }
  }

  function curves(section) {
    const metric = section.dataset.metric, about = metrics[metric];
    if (metric !== "loss" && !about) return;
    const range = metric === "loss" ? lossRange(runs) : metricRange(metric, runs);
    element("h3", section, {}, metric === "loss" ? "Loss" : upper(about.name));
    element("p", section, { class: "note" }).innerHTML = metric === "loss"
      ? `In ${data.loss_unit}; the first tenth of the steps may lie above the panel.` : about.formula;
    const grid = element("div", section, { class: "grid" });
    for (const condition of unique(runs.map(r => r.condition))) {
      const chosen = runs.filter(r => r.condition === condition);
      const figure = metric === "loss" ? lossFigure(condition, chosen, range)
        : metricFigure(metric, condition, chosen, range);
      if (figure.lines.length) Figure.show(grid, { ...figure, id: slug(metric, condition) });
    }
  }

  function layerPlots() {
    const metric = byId("metric").value, about = metrics[metric];
    const chosen = unique([byId("left"), byId("right")].map(s => runs[s.value]));
    byId("formula").innerHTML = about.formula;
    const form = about.log ? "log" : "linear";
    const range = Axes.range(runs.flatMap(r => r.metrics[metric] ? r.metrics[metric].layers.flat() : []),
      form, about.log && about.largest ? 1 : undefined);
    byId("layers").replaceChildren();
    chosen.forEach((run, place) => {
      const curve = run.metrics[metric];
      if (!curve) {
        return element("p", byId("layers"), { class: "note" }, `${about.name} was not measured in ${run.name}.`);
      }
      Figure.show(byId("layers"), { id: `layers-${place}`, title: `${upper(about.name)} by layer, ${run.name}`,
        x: "step", y: about.axis, form, range, xRange: [0, longest],
        lines: curve.layers.map((y, layer) => ({ name: `layer ${layer}`, key: String(layer), x: curve.steps,
          y, dash: "solid", colour: Drawing.shade(layer / Math.max(curve.layers.length - 1, 1)) })) });
    });
  }

  function heatMaps() {
    const metric = byId("metric").value, about = metrics[metric];
    const shown = runs.filter(r => r.metrics[metric]);
    let low = Infinity, high = -Infinity;
    for (const v of shown.flatMap(r => r.metrics[metric].layers.flat())) {
      if (v === null || (about.log && v <= 0)) continue;
      low = Math.min(low, v); high = Math.max(high, v);
    }
    byId("heat-title").textContent = `${upper(about.name)} by layer and step, every run`;
    byId("heat").replaceChildren();
    shown.forEach((run, i) => {
      const curve = run.metrics[metric];
      if (low > high || !curve.steps.length) return;
      Figure.show(byId("heat"), { id: `map-${i}`, title: `${upper(about.name)}, ${run.name}`, x: "step", y: "layer", value: about.axis,
        heat: { x: curve.steps, layers: curve.layers, log: about.log, low, high } });
    });
  }

  function panelFigure(shown) {
    const count = Math.max(shown.lines.length - 1, 1), last = line => line.x[line.x.length - 1];
    const end = Math.max(...shown.lines.map(last));
    const positive = shown.lines.every(l => l.y.every(v => v === null || v > 0));
    return { title: shown.title, note: shown.note, x: shown.x, y: shown.y,
      xForm: shown.x === "step" ? "steps" : /^(layer|bits)/.test(shown.x) ? "whole" : "linear", form: shown.log && positive ? "log" : "linear",
      lines: shown.lines.map((line, i) => ({ ...line, key: String(i), marks: true, dash: "solid",
        colour: Drawing.shade(i / count),
        end: line.sizes && last(line) === end ? line.name.replace("neuron ", "") : "" })) };
  }

  // Panels that say themselves what they show: see of_jax/report/panels.py.
  function analyses() {
    for (const item of data.analyses || []) {
      element("h3", byId("analyses"), {}, `${item.run}: ${item.title}`);
      const grid = element("div", byId("analyses"), { class: "grid" });
      for (const shown of item.panels) {
        Figure.show(grid, { ...panelFigure(shown), id: slug(item.run, item.title, shown.title) });
      }
    }
  }

  function choices() {
    if (!byId("metric") || !Object.keys(metrics).length) return;
    for (const [id, about] of Object.entries(metrics)) {
      element("option", byId("metric"), { value: id }, about.name);
    }
    for (const id of ["left", "right"]) {
      runs.forEach((run, i) => element("option", byId(id), { value: i }, run.name));
    }
    // Beside the first run stands the first of another group: the comparison that is asked for.
    byId("right").value = Math.max(runs.findIndex(r => r.group !== runs[0].group), 0);
    byId("metric").addEventListener("change", () => { layerPlots(); heatMaps(); });
    byId("left").addEventListener("change", layerPlots);
    byId("right").addEventListener("change", layerPlots);
    layerPlots();
    heatMaps();
  }

  lead();
  claims();
  document.querySelectorAll(".curves").forEach(curves);
  choices();
  analyses();
  document.body.classList.add("drawn");
  if (location.hash && byId(location.hash.slice(1))) byId(location.hash.slice(1)).scrollIntoView();
})();
