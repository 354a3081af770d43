// A figure on the page: what Drawing draws, with its legend, downloads, zoom, pointer and keys.
"use strict";
const Figure = (() => {
  function element(tag, parent, attributes, text) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.appendChild(node);
    return node;
  }

  // Figures are drawn when they come near the screen, and all before the page is printed.
  const waiting = new Map();
  const watcher = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) now(entry.target);
  }, { rootMargin: "600px" });
  function now(node) {
    const draw = waiting.get(node);
    waiting.delete(node);
    watcher.unobserve(node);
    if (draw) draw();
  }
  addEventListener("beforeprint", () => [...waiting.keys()].forEach(now));

  function save(name, type, content) {
    const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
    element("a", null, { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  // Three times the size of the SVG, and so 288 dots an inch.
  function png(name, text) {
    const picture = new Image(), url = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    picture.onload = () => {
      const canvas = element("canvas", null, { width: picture.width * 3, height: picture.height * 3 });
      canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
      canvas.toBlob(blob => save(name, "image/png", blob));
      URL.revokeObjectURL(url);
    };
    picture.src = url;
  }

  function csv(figure) {
    const cell = v => v === null || v === undefined ? ""
      : /[",\n]/.test(String(v)) ? `"${String(v).replace(/"/g, '""')}"` : String(v);
    const rows = figure.intervals ? [["name", "estimate", "low", "high", "margin", "seeds"],
      ...figure.intervals.rows.map(r => [r.name, r.estimate, r.low, r.high, figure.intervals.margin,
        (r.seeds || []).join(" ")])]
      : figure.heat ? [["layer", figure.x, figure.value], ...figure.heat.layers.flatMap(
        (row, layer) => row.map((v, i) => [layer, figure.heat.x[i], v]))]
        : [["curve", figure.x, figure.y, ...(figure.lines.some(l => l.sizes) ? ["share"] : [])],
          ...figure.lines.flatMap(l => l.x.map((x, i) => [l.name, x, l.y[i],
            ...(l.sizes ? [l.sizes[i]] : [])]))];
    return rows.map(row => row.map(cell).join(",")).join("\n") + "\n";
  }

  // For those who hear the page: where each curve begins, ends and is largest.
  function described(figure) {
    if (figure.intervals) {
      return figure.intervals.rows.map(r => `${r.name}: ${r.said}`).join("; ");
    }
    if (figure.heat) {
      return `Map of ${figure.value} from ${Axes.plain(figure.heat.low, 3)} to ` +
        `${Axes.plain(figure.heat.high, 3)} over ${figure.heat.layers.length} layers.`;
    }
    return figure.lines.slice(0, 12).map(line => {
      const found = line.x.map((x, i) => [x, line.y[i]]).filter(p => p[1] !== null);
      if (!found.length) return `${line.name}: nothing.`;
      const top = found.reduce((a, b) => b[1] > a[1] ? b : a), last = found[found.length - 1];
      const say = p => `${Axes.plain(p[1], 4)} at ${Axes.plain(p[0])}`;
      return `${line.name}: from ${say(found[0])} to ${say(last)}, largest ${say(top)}.`;
    }).join(" ") + (figure.lines.length > 12 ? ` And ${figure.lines.length - 12} more.` : "");
  }

  function swatch(line) {
    return `<svg width="26" height="8" aria-hidden="true"><path d="M0 4H26" style="stroke-width:2.5;` +
      `stroke-dasharray:${Drawing.DASHES[line.dash] || "none"};` +
      `${Drawing.paint("stroke", line.colour, false)}"/></svg>`;
  }

  function button(parent, text, label, act) {
    const node = element("button", parent, { type: "button", title: label, "aria-label": label }, text);
    node.addEventListener("click", act);
    return node;
  }

  // Curves of one colour and one dash are told apart by their names, where they end.
  function nameThoseAlike(figure) {
    const lines = (figure.lines || []).filter(line => !line.faint && !line.sizes);
    const look = line => `${line.colour} ${line.dash}`, seen = new Map();
    for (const line of lines) seen.set(look(line), (seen.get(look(line)) || 0) + 1);
    for (const line of lines) if (seen.get(look(line)) > 1) line.end = line.end || line.name;
  }

  // Puts a figure at the end of `parent`.
  function show(parent, figure) {
    nameThoseAlike(figure);
    const state = { view: null, hidden: new Set(), at: null };
    const box = element("figure", parent, { class: "chart", id: figure.id });
    const head = element("div", box, { class: "head" });
    const title = element("h4", head, { id: `${figure.id}-title` }, figure.title);
    element("a", title, { class: "anchor", href: `#${figure.id}`,
      "aria-label": `link to the figure ${figure.title}` }, "#");
    const tools = element("div", head, { class: "tools" });
    const name = figure.id.replace(/[^\w-]+/g, "_");
    const text = () => Drawing.file(figure, state.view, state.hidden);
    button(tools, "PNG", `save ${figure.title} as PNG`, () => png(`${name}.png`, text()));
    button(tools, "SVG", `save ${figure.title} as SVG`,
      () => save(`${name}.svg`, "image/svg+xml", text()));
    button(tools, "CSV", `save the numbers of ${figure.title} as CSV`,
      () => save(`${name}.csv`, "text/csv", csv(figure)));
    if (figure.note) element("figcaption", box, { class: "note" }).innerHTML = figure.note;
    const plot = element("div", box, { class: "plot", tabindex: "0", role: "group",
      "aria-labelledby": `${figure.id}-title`, "aria-describedby": `${figure.id}-said` });
    const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    picture.setAttribute("aria-hidden", "true");
    plot.appendChild(picture);
    const tip = element("div", plot, { class: "tip", "aria-live": "polite" });
    tip.hidden = true;
    element("p", box, { class: "heard", id: `${figure.id}-said` }, described(figure) +
      (figure.intervals ? "" : " Arrow keys read the numbers, plus and minus zoom, 0 shows all."));
    const size = { width: 0, height: Drawing.height(figure) };

    function draw() {
      size.width = plot.clientWidth || 360;
      picture.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
      picture.setAttribute("height", size.height);
      picture.innerHTML = Drawing.inside(figure, state.view, size, state.hidden, false,
        `${figure.id}-clip`);
      if (back) back.hidden = !state.view;
    }

    let back = null;
    if (!figure.intervals) {
      back = button(tools, "Reset", `show all of ${figure.title}`, () => { state.view = null; draw(); });
      back.hidden = true;
      touch(figure, state, plot, picture, tip, size, draw);
      if (figure.lines) legend(box, figure, state, draw);
    }
    waiting.set(plot, () => {
      draw();
      new ResizeObserver(() => { if (plot.clientWidth !== size.width) draw(); }).observe(plot);
    });
    watcher.observe(plot);
  }

  function legend(box, figure, state, draw) {
    const lines = figure.lines.filter(line => !line.faint);
    if (lines.length < 2) return;
    let parent = element("div", box, { class: "legend", role: "group",
      "aria-label": "curves, each shown or hidden by its button" });
    if (lines.length > 12) {
      const folded = element("details", parent);
      element("summary", folded, {}, `${lines.length} curves`);
      parent = element("div", folded, { class: "legend" });
    }
    for (const line of lines) {
      const item = element("button", parent, { type: "button", "aria-pressed": "true" });
      item.innerHTML = swatch(line);
      item.appendChild(document.createTextNode(line.name));
      item.addEventListener("click", () => {
        if (!state.hidden.delete(line.key)) state.hidden.add(line.key);
        item.setAttribute("aria-pressed", String(!state.hidden.has(line.key)));
        draw();
      });
    }
  }

  // Pointer: numbers of the nearest point, a drag enlarges, a double click shows all. Keys: arrows
  // go along a curve and from curve to curve.
  function touch(figure, state, plot, picture, tip, size, draw) {
    const frame = () => Drawing.frame(figure, state.view, size, state.hidden);

    function tell(x, y, text, colour) {
      tip.textContent = text;
      tip.hidden = false;
      tip.style.left = `${Math.max(0, Math.min(x + 12, size.width - tip.offsetWidth - 4))}px`;
      tip.style.top = `${Math.max(0, y - tip.offsetHeight - 10)}px`;
      picture.querySelectorAll(".here").forEach(node => node.remove());
      const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      for (const [key, value] of [["class", "here"], ["cx", x], ["cy", y], ["r", 5]]) {
        dot.setAttribute(key, value);
      }
      dot.style.stroke = colour;
      picture.appendChild(dot);
    }

    function away() {
      tip.hidden = true;
      picture.querySelectorAll(".here").forEach(node => node.remove());
    }

    function say(line, point) {
      const i = point[2], share = line.sizes ? `, share ${Axes.plain(line.sizes[i], 3)}` : "";
      tell(point[0], point[1], `${line.name}: ${Axes.plain(line.y[i], 4)} at ` +
        `${figure.x.split(" ")[0]} ${Axes.plain(line.x[i])}${share}`, line.colour);
    }

    function cell(box, layer, k) {
      const heat = figure.heat;
      tell(box.x.at(heat.x[k]), box.y.at(layer), `layer ${layer}, step ${Axes.plain(heat.x[k])}: ` +
        Axes.plain(heat.layers[layer][k], 4), "#fff");
    }

    const nearest = (values, v) => values.reduce(
      (best, x, i) => Math.abs(x - v) < Math.abs(values[best] - v) ? i : best, 0);

    function hover(px, py) {
      const box = frame();
      if (figure.heat) {
        const layer = Math.round(box.y.value(py));
        if (layer < 0 || layer >= figure.heat.layers.length) return away();
        return cell(box, layer, nearest(figure.heat.x, box.x.value(px)));
      }
      let best = null;
      for (const line of Drawing.shown(figure, state.hidden)) {
        if (line.faint) continue;
        for (const point of Drawing.points(line, box)) {
          if (!point || point[0] < box.left - 1 || point[0] > box.right + 1) continue;
          const far = (point[0] - px) ** 2 + (point[1] - py) ** 2;
          if (!best || far < best.far) best = { far, line, point };
        }
      }
      if (best && best.far < 2500) say(best.line, best.point); else away();
    }

    let from = null;
    const band = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    band.setAttribute("class", "band");
    const place = event => {
      const rect = picture.getBoundingClientRect();
      return [event.clientX - rect.left, event.clientY - rect.top];
    };
    const chosen = (a, b, box) => {
      const level = figure.heat || Math.abs(a[1] - b[1]) < 12;
      return { x: [Math.min(a[0], b[0]), Math.max(a[0], b[0])],
        y: level ? [box.top, box.bottom] : [Math.min(a[1], b[1]), Math.max(a[1], b[1])], level };
    };
    picture.addEventListener("pointerdown", event => {
      if (event.button) return;
      from = place(event);
      picture.setPointerCapture(event.pointerId);
    });
    picture.addEventListener("pointermove", event => {
      const to = place(event);
      if (!from) return hover(...to);
      const { x, y } = chosen(from, to, frame());
      for (const [key, value] of [["x", x[0]], ["width", x[1] - x[0]], ["y", y[0]],
        ["height", y[1] - y[0]]]) band.setAttribute(key, value);
      picture.appendChild(band);
    });
    picture.addEventListener("pointerup", event => {
      if (!from) return hover(...place(event));
      const box = frame(), { x, y, level } = chosen(from, place(event), box);
      from = null;
      band.remove();
      if (x[1] - x[0] < 8) return hover(...place(event));
      state.view = { x: x.map(box.x.value),
        y: level ? (state.view && state.view.y) || null : [box.y.value(y[1]), box.y.value(y[0])] };
      away();
      draw();
    });
    // A finger that goes up or down scrolls the page.
    picture.addEventListener("pointercancel", () => { from = null; band.remove(); });
    picture.addEventListener("pointerleave", away);
    picture.addEventListener("dblclick", () => { state.view = null; draw(); });

    function zoom(factor) {
      const box = frame(), middle = (box.left + box.right) / 2, half = (box.right - box.left) / 2;
      state.view = { x: [middle - half * factor, middle + half * factor].map(box.x.value),
        y: state.view && state.view.y };
      if (box.x.form === "steps") state.view.x[0] = Math.max(state.view.x[0], 0);
      draw();
    }

    function go(along, across) {
      const box = frame();
      const at = state.at || { row: 0, i: -1 };
      if (figure.heat) {
        const last = figure.heat.x.length - 1, rows = figure.heat.layers.length;
        at.i = Math.min(Math.max(at.i + along, 0), last);
        at.row = (at.row - across + rows) % rows;
        state.at = at;
        return cell(box, at.row, at.i);
      }
      const lines = Drawing.shown(figure, state.hidden).filter(line => !line.faint);
      if (!lines.length) return;
      at.row = (at.row + across + lines.length) % lines.length;
      const found = Drawing.points(lines[at.row], box).filter(p => p);
      if (!found.length) return;
      at.i = Math.min(Math.max(at.i + along, 0), found.length - 1);
      state.at = at;
      say(lines[at.row], found[at.i]);
    }

    const keys = { ArrowRight: () => go(1, 0), ArrowLeft: () => go(-1, 0), ArrowDown: () => go(0, 1),
      ArrowUp: () => go(0, -1), "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2),
      "0": () => { state.view = null; draw(); }, Escape: away };
    plot.addEventListener("keydown", event => {
      if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
      keys[event.key]();
      event.preventDefault();
    });
    plot.addEventListener("blur", away);
  }

  return { element, show };
})();
