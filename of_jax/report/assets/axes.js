// Axes of figures: where a number lies, which ticks stand there and how they are written.
"use strict";
const Axes = (() => {
  // Numbers as people write them: 20, 0.05, 1,000; powers of ten only far from 1.
  function plain(value, digits) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "none";
    const size = Math.abs(value);
    if (size !== 0 && (size >= 1e7 || size < 1e-5)) return value.toExponential().replace("+", "");
    return value.toLocaleString("en", { maximumSignificantDigits: digits || 6 });
  }

  const FORMS = {
    linear: { to: v => v, from: v => v },
    // Layers and bits: no tick stands between two.
    whole: { to: v => v, from: v => v },
    log: { to: Math.log10, from: v => 10 ** v },
    // Steps from 0, of checkpoints that are evenly spaced in their logarithm.
    steps: { to: v => Math.log10(1 + v), from: v => 10 ** v - 1 },
  };

  function evenly(low, high, count) {
    const rough = (high - low) / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= rough * 0.999) || 10 * power;
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
      found.push(Number((i * step).toPrecision(12)));
    }
    return found;
  }

  function decades(low, high, count) {
    const wide = Math.log10(high / low), found = [];
    const factors = wide > count / 1.5 ? [1] : wide > count / 3 ? [1, 3] : [1, 2, 5];
    const every = wide > count ? Math.ceil(wide / count) : 1;
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high) + 1e-9; power++) {
      if (((power % every) + every) % every) continue;
      for (const factor of factors) {
        const value = Number((factor * 10 ** power).toPrecision(1));
        if (value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9)) found.push(value);
      }
    }
    return found.length > 1 ? found : evenly(low, high, count);
  }

  // form: of FORMS; range: ends in data; from, to: ends on the screen.
  function axis(form, range, from, to, count) {
    const { to: forth, from: back } = FORMS[form];
    const low = forth(range[0]), high = forth(range[1]), span = high - low || 1;
    const ticks = form === "log" ? decades(range[0], range[1], count)
      : form === "steps" && range[1] > 20
        ? [0, ...decades(1, range[1], count)].filter(v => v >= range[0])
        : evenly(range[0], range[1], count).filter(v => form !== "whole" || Number.isInteger(v));
    return { range, form, ticks, text: ticks.map(v => plain(v)),
      at: v => from + (forth(v) - low) / span * (to - from),
      value: px => back(low + (px - from) / (to - from) * span) };
  }

  // The ends of an axis that holds these numbers, with a margin; a given end is kept.
  function range(values, form, floor) {
    const { to, from } = FORMS[form];
    let low = Infinity, high = -Infinity;
    for (const v of values) {
      if (v === null || !Number.isFinite(v) || (form === "log" && v <= 0)) continue;
      low = Math.min(low, v); high = Math.max(high, v);
    }
    if (low > high) return form === "log" ? [0.1, 10] : [0, 1];
    if (floor !== undefined) low = Math.min(low, floor);
    let a = to(low), b = to(high);
    if (form === "log" && b - a < 0.3) { const middle = (a + b) / 2; a = middle - 0.15; b = middle + 0.15; }
    const margin = 0.05 * (b - a) || Math.abs(a) * 0.05 || 0.1;
    return [from(a - margin), from(b + margin)];
  }

  return { axis, range, plain };
})();
