// Figures as SVG text, on the page in its own colours, for a file in those of paper.
//
// A figure: id, title, x, y (labels), form and xForm (see Axes), range, xRange, floor, and one of
//   lines: each name, key, x, y, colour, dash, and perhaps faint, marks, sizes (0 to 1), end (its
//     name stands where it ends);
//   heat: x (steps), layers (rows of numbers), log, low, high;
//   intervals: rows of name, estimate, low, high, seeds, and margin (what must lie beyond it).
"use strict";
const Drawing = (() => {
  const DASHES = { solid: "", dash: "7 4", dot: "2 3", dashdot: "8 3 2 3" };
  const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779",
    "#6ece58", "#b5de2b", "#fde725"];
  const PAPER = { ink: "#1d2126", soft: "#4a525b", line: "#e3e6ea", good: "#e4f3ec" };
  const LETTER = 6.3;

  const escape = text => String(text).replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
  // Not to the end, which is too light on white.
  const shade = fraction => blend(0.9 * fraction);
  const width = text => LETTER * text.length;

  // On the page colours follow its theme; in a file they are those of paper.
  const colour = (name, paper) => paper ? PAPER[name] : `var(--${name})`;
  function paint(property, value, paper) {
    return paper ? `${property}:${value}`
      : `${property}:${value};${property}:color-mix(in srgb, ${value} var(--keep), white)`;
  }

  function wrapped(text, most) {
    const lines = [""];
    for (const word of String(text).split(" ")) {
      const last = lines.length - 1;
      if (lines[last] && (lines[last] + word).length >= most) lines.push(word);
      else lines[last] += (lines[last] ? " " : "") + word;
    }
    return lines;
  }

  function words(x, y, text, paper, more) {
    return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" style="fill:${colour("soft", paper)}" ` +
      `${more || ""}>${escape(text)}</text>`;
  }

  const rule = (x1, y1, x2, y2, name, paper, more) =>
    `<line x1="${x1.toFixed(1)}" y1="${y1.toFixed(1)}" x2="${x2.toFixed(1)}" y2="${y2.toFixed(1)}" ` +
    `style="stroke:${colour(name, paper)};${more || ""}"/>`;

  function shown(figure, hidden) {
    return (figure.lines || []).filter(line => !hidden || !hidden.has(line.key));
  }

  function frame(figure, view, size, hidden) {
    const lines = shown(figure, hidden);
    const xForm = figure.xForm || "linear", form = figure.form || "linear";
    const xs = figure.heat ? figure.heat.x : lines.flatMap(l => l.x);
    const xRange = (view && view.x) || figure.xRange || (figure.heat
      ? [figure.heat.x[0], figure.heat.x[figure.heat.x.length - 1]] : Axes.range(xs, xForm));
    if (xForm === "steps") xRange[0] = Math.max(xRange[0], 0);
    if (xRange[0] === xRange[1]) xRange[1] += 1;
    const yRange = figure.heat ? [-0.5, figure.heat.layers.length - 0.5] : (view && view.y) ||
      figure.range || Axes.range(lines.flatMap(l => l.y), form, figure.floor);
    const ends = lines.filter(l => l.end).map(l => width(l.end) * 0.85 + 8);
    const right = figure.heat ? 62 : Math.min(Math.max(14, ...ends), size.width * 0.3);
    const top = size.top || 8, bottom = size.height - (size.bottom || 0) - 38;
    const dry = Axes.axis(figure.heat ? "linear" : form, yRange, bottom, top, (bottom - top) / 38);
    const left = Math.max(30, ...dry.text.map(width)) + 26;
    const y = dry;
    if (figure.heat) {
      const every = Math.ceil(figure.heat.layers.length / 6);
      y.ticks = figure.heat.layers.map((_, i) => i).filter(i => i % every === 0);
      y.text = y.ticks.map(String);
    }
    const x = Axes.axis(xForm, xRange, left, size.width - right, (size.width - right - left) / 72);
    return { x, y, left, right: size.width - right, top, bottom };
  }

  function axesOf(figure, box, paper) {
    const out = [];
    box.y.ticks.forEach((v, i) => {
      const at = box.y.at(v);
      if (!figure.heat) out.push(rule(box.left, at, box.right, at, "line", paper));
      out.push(words(box.left - 6, at + 4, box.y.text[i], paper, 'text-anchor="end"'));
    });
    box.x.ticks.forEach((v, i) => {
      const at = box.x.at(v);
      if (at < box.left - 1 || at > box.right + 1) return;
      out.push(rule(at, box.bottom, at, box.bottom + 4, "soft", paper));
      out.push(words(at, box.bottom + 17, box.x.text[i], paper, 'text-anchor="middle"'));
    });
    out.push(rule(box.left, box.bottom, box.right, box.bottom, "soft", paper));
    const middle = (box.top + box.bottom) / 2;
    out.push(words((box.left + box.right) / 2, box.bottom + 33, figure.x, paper, 'text-anchor="middle"'));
    out.push(words(12, middle, figure.y, paper,
      `text-anchor="middle" transform="rotate(-90 12 ${middle.toFixed(1)})"`));
    return out.join("");
  }

  function points(line, box) {
    return line.x.map((x, i) => {
      const y = line.y[i];
      const bad = y === null || y === undefined || x === null || (box.y.form === "log" && y <= 0);
      return bad ? null : [box.x.at(x), box.y.at(y), i];
    });
  }

  function curve(line, box, paper) {
    const found = points(line, box), out = [];
    const inside = found.filter(p => p);
    if (line.sizes) {
      for (const p of inside) {
        const radius = 1.6 + 6 * Math.sqrt(line.sizes[p[2]] || 0);
        out.push(`<circle cx="${p[0].toFixed(1)}" cy="${p[1].toFixed(1)}" r="${radius.toFixed(1)}" ` +
          `style="${paint("fill", line.colour, paper)};fill-opacity:.8"/>`);
      }
      return out.join("");
    }
    let path = "", pen = false;
    for (const p of found) {
      if (p) path += `${pen ? "L" : "M"}${p[0].toFixed(1)} ${p[1].toFixed(1)}`;
      pen = Boolean(p);
    }
    out.push(`<path d="${path}" style="fill:none;${paint("stroke", line.colour, paper)};` +
      `stroke-width:${line.faint ? 1 : 2};stroke-linejoin:round;opacity:${line.faint ? 0.35 : 1}` +
      `${DASHES[line.dash] ? `;stroke-dasharray:${DASHES[line.dash]}` : ""}"/>`);
    // A lone point is no curve; it must be seen.
    if (line.marks || inside.length === 1) {
      for (const p of inside) {
        out.push(`<circle cx="${p[0].toFixed(1)}" cy="${p[1].toFixed(1)}" r="2.6" ` +
          `style="${paint("fill", line.colour, paper)}"/>`);
      }
    }
    return out.join("");
  }

  function ends(lines, box, paper) {
    const labels = lines.filter(l => l.end).map(line => {
      const last = points(line, box).filter(p => p).pop();
      return last && { text: line.end, x: last[0], y: last[1], colour: line.colour };
    }).filter(l => l && l.x <= box.right + 1).sort((a, b) => a.y - b.y);
    // None covers another: each goes down as far as it must, and none below the axis.
    labels.forEach((l, i) => { if (i) l.y = Math.max(l.y, labels[i - 1].y + 12); });
    for (let i = labels.length - 1, most = box.bottom; i >= 0; i--, most = labels[i + 1].y - 12) {
      labels[i].y = Math.min(labels[i].y, most);
    }
    return labels.map(l => `<text x="${(l.x + 5).toFixed(1)}" y="${(l.y + 4).toFixed(1)}" font-size="10" ` +
      `style="${paint("fill", l.colour, paper)}">${escape(l.text)}</text>`).join("");
  }

  function pixels(heat, range) {
    const columns = 480, tall = 6, rows = heat.layers.length, to = heat.log ? Math.log10 : v => v;
    const canvas = document.createElement("canvas");
    canvas.width = columns; canvas.height = rows * tall;
    const pen = canvas.getContext("2d"), low = to(heat.low), span = to(heat.high) - low || 1;
    for (let c = 0, k = 0; c < columns; c++) {
      const step = range[0] + (c + 0.5) / columns * (range[1] - range[0]);
      while (k + 1 < heat.x.length && Math.abs(heat.x[k + 1] - step) <= Math.abs(heat.x[k] - step)) k++;
      heat.layers.forEach((values, layer) => {
        const v = values[k];
        if (v === null || (heat.log && v <= 0)) return;
        pen.fillStyle = blend((to(v) - low) / span);
        pen.fillRect(c, (rows - 1 - layer) * tall, 1, tall);
      });
    }
    return canvas.toDataURL("image/png");
  }

  function blend(fraction) {
    const at = Math.min(Math.max(fraction, 0), 1) * (VIRIDIS.length - 1), i = Math.min(Math.floor(at), 8);
    const [a, b] = [VIRIDIS[i], VIRIDIS[i + 1]].map(c => [1, 3, 5].map(k => parseInt(c.slice(k, k + 2), 16)));
    return `rgb(${a.map((v, k) => Math.round(v + (b[k] - v) * (at - i))).join(",")})`;
  }

  function heatMap(figure, box, paper) {
    const heat = figure.heat, x = box.right + 10, tall = (box.bottom - box.top) / VIRIDIS.length;
    const key = VIRIDIS.map((c, i) => `<rect x="${x}" y="${(box.bottom - (i + 1) * tall).toFixed(1)}" ` +
      `width="9" height="${(tall + 0.5).toFixed(1)}" style="fill:${c}"/>`).join("");
    return `<image x="${box.left}" y="${box.top}" width="${(box.right - box.left).toFixed(1)}" ` +
      `height="${(box.bottom - box.top).toFixed(1)}" preserveAspectRatio="none" ` +
      `style="image-rendering:pixelated" href="${pixels(heat, box.x.range)}"/>${key}` +
      words(x + 13, box.bottom, Axes.plain(heat.low, 3), paper) +
      words(x + 13, box.top + 9, Axes.plain(heat.high, 3), paper) +
      (heat.log ? words(x + 13, (box.top + box.bottom) / 2, "log", paper) : "");
  }

  const rowHeight = figure => figure.intervals.rows.length > 1 ? 54 : 40;

  // The height of a figure less what stands above and below its plot.
  function height(figure) {
    if (figure.intervals) return 46 + rowHeight(figure) * figure.intervals.rows.length;
    return figure.heat ? 170 : 270;
  }

  function intervals(figure, size, paper) {
    const { rows, margin, supports } = figure.intervals, form = figure.form || "linear";
    const ends = rows.flatMap(r => [r.estimate, r.low, r.high, ...(r.seeds || [])]);
    const range = Axes.range([...ends, margin], form);
    const top = size.top || 8, bottom = size.height - (size.bottom || 0) - 38, left = 14;
    const right = size.width - 16, x = Axes.axis(form, range, left, right, (right - left) / 80);
    const out = [], from = Math.max(x.at(margin), left);
    out.push(`<rect x="${from.toFixed(1)}" y="${top}" width="${Math.max(right - from, 0).toFixed(1)}" ` +
      `height="${bottom - top}" style="fill:${colour("good", paper)}"/>`);
    x.ticks.forEach((v, i) => {
      out.push(rule(x.at(v), bottom, x.at(v), bottom + 4, "soft", paper));
      out.push(words(x.at(v), bottom + 17, x.text[i], paper, 'text-anchor="middle"'));
    });
    out.push(rule(left, bottom, right, bottom, "soft", paper));
    out.push(words((left + right) / 2, bottom + 33, figure.x, paper, 'text-anchor="middle"'));
    rows.forEach((row, i) => {
      const y = top + rowHeight(figure) * (i + 1) - 12;
      out.push(rule(from, y - 9, from, y + 10, "ink", paper, "stroke-dasharray:4 3"));
      const ink = `stroke:${colour("ink", paper)};stroke-width:2`;
      // One row's name is the figure's title.
      const told = wrapped(rows.length > 1 ? `${row.name}: ${row.said}` : row.said, (right - left) / 6);
      told.slice(-2).forEach((t, k, both) => out.push(words(left, y - 13 * (both.length - k), t, paper)));
      if (row.low !== null && row.high !== null) {
        const [a, b] = [x.at(row.low), x.at(row.high)];
        out.push(`<path d="M${a} ${y}H${b}M${a} ${y - 5}V${y + 5}M${b} ${y - 5}V${y + 5}" style="fill:none;${ink}"/>`);
      }
      for (const v of row.seeds || []) {
        out.push(`<circle cx="${x.at(v).toFixed(1)}" cy="${y}" r="3" ` +
          `style="fill:none;stroke:${colour("soft", paper)}"/>`);
      }
      out.push(`<circle cx="${x.at(row.estimate).toFixed(1)}" cy="${y}" r="4.5" ` +
        `style="fill:${colour("ink", paper)}"/>`);
    });
    return out.join("");
  }

  function inside(figure, view, size, hidden, paper, clip) {
    if (figure.intervals) return intervals(figure, size, paper);
    const box = frame(figure, view, size, hidden), lines = shown(figure, hidden);
    const drawn = figure.heat ? heatMap(figure, box, paper)
      : `<g clip-path="url(#${clip})">${lines.map(l => curve(l, box, paper)).join("")}</g>` +
        ends(lines, box, paper);
    return `<clipPath id="${clip}"><rect x="${box.left - 4}" y="${box.top - 4}" ` +
      `width="${box.right - box.left + 8}" height="${box.bottom - box.top + 8}"/></clipPath>` +
      axesOf(figure, box, paper) + drawn;
  }

  function legend(figure, hidden, size) {
    const lines = figure.lines ? shown(figure, hidden).filter(l => !l.faint && !l.end) : [];
    const items = lines.length > 1 && lines.length <= 16 ? lines : [];
    let x = 14, row = 0;
    const placed = items.map(line => {
      const wide = 46 + width(line.name);
      if (x + wide > size.width && x > 14) { x = 14; row += 1; }
      const place = { line, x, row };
      x += wide;
      return place;
    });
    return { placed, rows: items.length ? row + 1 : 0 };
  }

  // A file of its own: title above, legend below, in the colours and at the size of paper.
  function file(figure, view, hidden) {
    const size = { width: 520, height: 0, top: 0, bottom: 0 };
    const title = wrapped(figure.title, 74), key = legend(figure, hidden, size);
    size.top = 14 + 17 * title.length;
    size.bottom = key.rows * 18;
    size.height = height(figure) + (figure.lines ? 40 : 10) + size.top + size.bottom;
    const heading = title.map((t, i) => `<text x="14" y="${18 + 17 * i}" font-size="13" ` +
      `font-weight="600" style="fill:${PAPER.ink}">${escape(t)}</text>`).join("");
    const names = key.placed.map(({ line, x, row }) => {
      const y = size.height - 8 - 18 * (key.rows - 1 - row);
      const dashes = DASHES[line.dash] ? `;stroke-dasharray:${DASHES[line.dash]}` : "";
      return `<path d="M${x} ${y - 4}H${x + 26}" style="stroke:${line.colour};stroke-width:2${dashes}"/>` +
        words(x + 32, y, line.name, true);
    }).join("");
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${size.width / 96}in" ` +
      `height="${size.height / 96}in" viewBox="0 0 ${size.width} ${size.height}" ` +
      'font-family="Helvetica, Arial, sans-serif" font-size="11"><title>' +
      `${escape(figure.title)}</title><rect width="100%" height="100%" style="fill:#fff"/>` +
      `${heading}${inside(figure, view, size, hidden, true, "plot")}${names}</svg>`;
  }

  return { DASHES, escape, file, frame, height, inside, paint, points, shade, shown };
})();
