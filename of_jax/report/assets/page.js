// Draws the interactive figures. The plotting library is in this page, compressed.
"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = id => document.getElementById(id);
  const narrow = matchMedia("(max-width: 600px)").matches;
  const settings = { displayModeBar: false, responsive: true };
  const longest = Math.max(1, ...data.runs.map(r => r.train.steps[r.train.steps.length - 1] || 1));
  const unique = items => [...new Set(items)];

  function element(tag, parent, text) {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    parent.appendChild(node);
    return node;
  }

  function panel(parent, title) {
    const box = element("div", parent);
    box.className = "panel";
    if (title) element("h4", box, title);
    const plot = element("div", box);
    plot.className = "plot";
    return plot;
  }

  // A figure is drawn when it comes near the screen: a page of many runs opens at once.
  const waiting = new Map();
  const watcher = new IntersectionObserver(entries => {
    for (const entry of entries) {
      if (!entry.isIntersecting || !waiting.has(entry.target)) continue;
      waiting.get(entry.target)();
      waiting.delete(entry.target);
      watcher.unobserve(entry.target);
    }
  }, { rootMargin: "600px" });

  function draw(plot, traces, layout) {
    waiting.set(plot, () => Plotly.newPlot(plot, traces, layout, settings));
    watcher.observe(plot);
  }

  // Plain numbers for a log axis, whose range is in powers of ten: 1, 2, 5, 10, 20 and so on.
  function ticks(range) {
    if (!range) return undefined;
    const factors = range[1] - range[0] > 2.5 ? [1] : range[1] - range[0] > 1.7 ? [1, 3] : [1, 2, 5];
    const values = [];
    for (let power = Math.floor(range[0]); power <= range[1]; power++) {
      for (const factor of factors) values.push(Number((factor * 10 ** power).toPrecision(1)));
    }
    return values;
  }

  function layout(yTitle, log, range) {
    return {
      margin: { l: 52, r: 16, t: 8, b: 38 }, showlegend: false, hovermode: "closest",
      // On a phone a finger must be able to scroll past a figure.
      dragmode: narrow ? false : "zoom",
      font: { family: "system-ui, sans-serif", size: 12, color: "#1d2126" },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      xaxis: { title: { text: "step", standoff: 4 }, gridcolor: "#eceff2", zeroline: false,
        fixedrange: narrow, range: [0, longest * 1.02] },
      yaxis: { title: { text: yTitle, standoff: 6 }, gridcolor: "#eceff2", zeroline: false,
        type: log ? "log" : "linear", range: range, fixedrange: narrow, automargin: true,
        tickvals: log ? ticks(range) : undefined,
        ticktext: log && range ? ticks(range).map(String) : undefined },
    };
  }

  function swatch(colour, dash, width) {
    const pattern = { solid: "", dash: "6 4", dot: "2 3", dashdot: "6 3 2 3" }[dash];
    return `<svg width="30" height="8"><line x1="0" x2="30" y1="4" y2="4" stroke="${colour}" ` +
      `stroke-width="${width || 2.5}" stroke-dasharray="${pattern}"/></svg>`;
  }

  function legendItem(parent, colour, dash, text, width) {
    const item = element("span", parent);
    item.innerHTML = swatch(colour, dash, width);
    item.appendChild(document.createTextNode(text));
  }

  function padded(values, log, floor) {
    const finite = values.filter(v => v !== null && (!log || v > 0));
    if (!finite.length) return undefined;
    let low = Math.min(...finite), high = Math.max(...finite);
    if (floor !== undefined) low = Math.min(low, floor);
    if (log) {
      low = Math.log10(low); high = Math.max(Math.log10(high), low + 0.48);
    }
    const margin = 0.05 * (high - low) || 0.1;
    return [low - margin, high + margin];
  }

  function lossRange() {
    const late = [];
    for (const run of data.runs) {
      const last = run.train.steps[run.train.steps.length - 1];
      // The first tenth falls from that of an untrained network and would flatten the rest.
      run.train.steps.forEach((step, i) => {
        const value = run.train.loss[i];
        if (step > last / 10 && value !== null) {
          late.push(Math.min(value, run.untrained_loss + 1));
        }
      });
      late.push(...run.eval.loss.filter(v => v !== null)
        .map(v => Math.min(v, run.untrained_loss + 1)));
    }
    return padded(late, false);
  }

  function curves(section) {
    const metric = section.dataset.metric;
    const about = data.metrics[metric];
    if (metric !== "loss" && !about) return;
    const range = metric === "loss" ? lossRange() : padded(
      data.runs.flatMap(r => r.metrics[metric] ? r.metrics[metric].line : []), about.log,
      about.log ? 1 : undefined);
    element("h3", section, metric === "loss" ? "Loss: validation (dots) and training (faint)"
      : about.name[0].toUpperCase() + about.name.slice(1) +
        (about.largest ? ", largest layer" : ", mean over layers"));
    const note = element("p", section);
    note.className = "note";
    note.innerHTML = metric === "loss"
      ? `In ${data.loss_unit}; the first tenth of the steps may lie above the panel.`
      : about.formula;
    const grid = element("div", section);
    grid.className = "grid";
    for (const condition of unique(data.runs.map(r => r.condition))) {
      const traces = [];
      for (const run of data.runs.filter(r => r.condition === condition)) {
        const name = `${run.group}, seed ${run.seed}`;
        const line = { color: run.colour, dash: run.dash, width: 2 };
        if (metric === "loss") {
          traces.push({ x: run.train.steps, y: run.train.loss, mode: "lines", opacity: 0.3,
            line: { color: run.colour, width: 1 }, name: name + ", training",
            hoverinfo: "skip" });
          traces.push({ x: run.eval.steps, y: run.eval.loss, mode: "lines+markers", line: line,
            marker: { size: 5 }, name: name });
        } else if (run.metrics[metric]) {
          const curve = run.metrics[metric];
          traces.push({ x: curve.steps, y: curve.line, mode: "lines", line: line, name: name });
        }
      }
      draw(panel(grid, condition), traces,
        layout(metric === "loss" ? data.loss_unit : about.axis, metric !== "loss" && about.log,
          range));
    }
  }

  // Viridis, from plotly's own stops: dark is the first layer or the smallest value.
  const stops = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779",
    "#6ece58", "#b5de2b", "#fde725"];
  const shade = fraction => stops[Math.round(fraction * (stops.length - 2))];
  const scale = stops.map((c, i) => [i / (stops.length - 1), c]);

  function layerPlots() {
    const metric = byId("metric").value, about = data.metrics[metric];
    const chosen = [byId("left"), byId("right")].map(s => data.runs[s.value]);
    byId("formula").innerHTML = about.formula;
    const values = data.runs.flatMap(r => r.metrics[metric] ? r.metrics[metric].layers.flat() : []);
    const range = padded(values, about.log, about.log && about.largest ? 1 : undefined);
    byId("layers").replaceChildren();
    for (const run of unique(chosen)) {
      const curve = run.metrics[metric];
      const traces = !curve ? [] : curve.layers.map((y, layer) => ({
        x: curve.steps, y: y, mode: "lines", name: `layer ${layer}`,
        line: { color: shade(layer / Math.max(curve.layers.length - 1, 1)), width: 2 } }));
      draw(panel(byId("layers"), run.name), traces, layout(about.axis, about.log, range));
    }
    const depth = Math.max(...chosen.map(r => r.metrics[metric] ? r.metrics[metric].layers.length : 0));
    const legend = byId("layer-legend");
    legend.replaceChildren();
    for (let layer = 0; layer < depth; layer++) {
      if (depth > 8 && layer % Math.ceil(depth / 8) && layer !== depth - 1) continue;
      legendItem(legend, shade(layer / Math.max(depth - 1, 1)), "solid", `layer ${layer}`);
    }
  }

  function heatMaps() {
    const metric = byId("metric").value, about = data.metrics[metric];
    const runs = data.runs.filter(r => r.metrics[metric]);
    const finite = runs.flatMap(r => r.metrics[metric].layers.flat()).filter(
      v => v !== null && (!about.log || v > 0));
    let low = Infinity, high = -Infinity;
    for (const v of finite) { low = Math.min(low, v); high = Math.max(high, v); }
    const to = about.log ? Math.log10 : v => v;
    byId("heat-title").textContent = `${about.name[0].toUpperCase() + about.name.slice(1)}` +
      " by layer and step, every run";
    const key = byId("heat-scale");
    key.replaceChildren();
    element("span", key, low.toPrecision(3));
    element("i", key).style.background = `linear-gradient(90deg, ${stops.join(",")})`;
    element("span", key, high.toPrecision(3) + (about.log ? " (log scale)" : ""));
    byId("heat").replaceChildren();
    for (const run of runs) {
      const curve = run.metrics[metric];
      const frame = layout("layer", false, undefined);
      frame.margin = { l: 34, r: 14, t: 4, b: 34 };
      frame.xaxis.range = [curve.steps[0], longest];
      frame.yaxis.dtick = Math.ceil(curve.layers.length / 6);
      frame.yaxis.showgrid = frame.xaxis.showgrid = false;
      draw(panel(byId("heat"), run.name), [{
        type: "heatmap", x: curve.steps, y: curve.layers.map((_, i) => i),
        z: curve.layers.map(c => c.map(v => v === null ? null : to(v))),
        customdata: curve.layers, zmin: to(low), zmax: to(high), colorscale: scale,
        showscale: false, hovertemplate: "layer %{y}, step %{x}: %{customdata}<extra></extra>",
      }], frame);
    }
  }

  // Panels that say themselves what they show: see of_jax/analysis/panels.py.
  function analyses() {
    for (const item of data.analyses) {
      element("h3", byId("analyses"), `${item.run}: ${item.title}`);
      const grid = element("div", byId("analyses"));
      grid.className = "grid";
      for (const shown of item.panels) {
        const plot = panel(grid, shown.title);
        element("p", plot.parentNode, shown.definition).className = "note";
        const frame = layout(shown.y, shown.log, undefined);
        frame.xaxis.title.text = shown.x;
        delete frame.xaxis.range;
        if (shown.log) frame.yaxis.tickvals = frame.yaxis.ticktext = undefined;
        frame.showlegend = shown.lines.length > 1 && shown.lines.length <= 6;
        frame.legend = { orientation: "h", y: -0.3, font: { size: 10 } };
        draw(plot, shown.lines.map((line, i) => ({
          x: line.x, y: line.y, name: line.name, mode: line.sizes ? "markers" : "lines+markers",
          line: { width: 2, color: shade(i / Math.max(shown.lines.length - 1, 1)) },
          marker: line.sizes
            ? { size: line.sizes.map(s => s || 0), sizemode: "area", sizeref: 0.005, sizemin: 2,
              color: shade(i / Math.max(shown.lines.length - 1, 1)), line: { width: 0 } }
            : { size: 5 },
          text: line.sizes ? line.sizes.map(s => s === null ? "" : `share ${s}`) : undefined,
        })), frame);
      }
    }
  }

  function start() {
    const legend = byId("legend");
    // A page of models that were loaded from elsewhere has no curves.
    if (!legend) return analyses();
    const seeds = unique(data.runs.map(r => r.seed));
    for (const group of unique(data.runs.map(r => r.group))) {
      legendItem(legend, data.runs.find(r => r.group === group).colour, "solid", group);
    }
    if (seeds.length > 1) {
      for (const seed of seeds) {
        legendItem(legend, "#5b636d", data.runs.find(r => r.seed === seed).dash, `seed ${seed}`);
      }
    }
    document.querySelectorAll(".curves").forEach(curves);
    analyses();
    if (!Object.keys(data.metrics).length) return;
    for (const [id, about] of Object.entries(data.metrics)) {
      element("option", byId("metric"), about.name).value = id;
    }
    for (const id of ["left", "right"]) {
      data.runs.forEach((run, i) => { element("option", byId(id), run.name).value = i; });
    }
    // Beside the first run stands the first of another group: the comparison that is asked for.
    const other = data.runs.findIndex(r => r.group !== data.runs[0].group);
    byId("right").value = Math.max(other, 0);
    const both = () => { layerPlots(); heatMaps(); };
    byId("metric").addEventListener("change", both);
    byId("left").addEventListener("change", layerPlots);
    byId("right").addEventListener("change", layerPlots);
    both();
  }

  async function unpack() {
    const packed = Uint8Array.from(atob(byId("library").textContent), c => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.appendChild(script);
  }

  unpack().then(start).catch(error => {
    document.body.classList.add("no-figures");
    if (byId("failed")) byId("failed").hidden = false;
    console.error(error);
  });
})();
