"use strict";
(async () => {
  const $ = (id) => document.getElementById(id);
  const say = (n, digits = 4) => Number.isFinite(n) ? n.toLocaleString("en", { maximumSignificantDigits: Number.isInteger(n) ? 15 : digits }) : "not measured";
  // All text goes in as text, never as HTML.
  const make = (parent, tag, text = "", cls = "") => {
    const node = document.createElement(tag);
    if (text !== "") node.textContent = text;
    if (cls) node.className = cls;
    parent.append(node);
    return node;
  };
  if (!window.DecompressionStream) {
    $("state").textContent = "This page needs a browser of 2023 or later.";
    return;
  }

  // Data: a header in JSON, then arrays, whose bytes of equal significance are together.
  const A = {}, TYPES = { u1: Uint8Array, u4: Uint32Array, i4: Int32Array, i8: BigInt64Array, f4: Float32Array };
  async function unpack(id) {
    const text = atob($(id).textContent), packed = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    let at = 4 + new DataView(bytes.buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, at)));
    for (const [name, type, n] of header.arrays) {
      const values = A[name] = new TYPES[type](n), out = new Uint8Array(values.buffer);
      const size = values.BYTES_PER_ELEMENT;
      for (let b = 0; b < size; b++) for (let i = 0, j = b; i < n; i++, j += size) out[j] = bytes[at++];
    }
    return header;
  }
  const D = await unpack("data");
  performance.mark("unpacked");
  const N = A.nucleus_id.length, V = D.variables;
  V.forEach((v) => { v.values = A[v.array]; v.hidden = new Set(); });
  // Pairs by post neuron, as they come, and the order that sorts them by pre neuron.
  let inputs, outputs;
  async function unpackPairs() {
    await unpack("pairs");
    const n = A.pre_steps.length, pre = new Uint32Array(n), post = new Uint32Array(n);
    const starts = [new Uint32Array(N + 1), new Uint32Array(N + 1)], byPre = new Uint32Array(n);
    for (let i = 0, k = 0; i < N; i++) {
      for (let id = 0, end = k + A.n_listed[i]; k < end; k++) {
        pre[k] = id += A.pre_steps[k];
        post[k] = i;
        starts[1][id + 1]++;
      }
      starts[0][i + 1] = k;
    }
    for (let i = 0; i < N; i++) starts[1][i + 1] += starts[1][i];
    const next = starts[1].slice();
    for (let k = 0; k < n; k++) byPre[next[pre[k]]++] = k;
    inputs = (i) => Array.from(A.weight.subarray(starts[0][i], starts[0][i + 1]), (w, k) => ({ i: pre[starts[0][i] + k], k: starts[0][i] + k, w }));
    outputs = (i) => Array.from(byPre.subarray(starts[1][i], starts[1][i + 1]), (k) => ({ i: post[k], k, w: A.weight[k] }));
  }

  // What is shown
  const S = { by: 0, view: "xy", chosen: -1, shown: [] };
  const GREY = "#D4D4D4", COLOURS = ["#0072B2", "#D55E00"], variable = () => V[S.by] || { values: new Uint8Array(N), words: ["cells"], palette: ["#0072B2"], hidden: new Set(), name: "" };
  const grouping = () => (variable().words ? variable() : V.find((v) => v.words) || V[S.by]);
  const isHidden = (v, i) => v.hidden.has(v.words ? v.values[i] : Number.isNaN(v.values[i]) ? -1 : 0);
  const value = (v, i) => v.words ? v.words[v.values[i]] : say(v.values[i]) + (Number.isFinite(v.values[i]) && v.units ? ` ${v.units}` : "");

  const B = Bokeh, P = B.Plotting;
  B.set_log_level("error"); // a figure with everything hidden has no range, which is a warning
  const source = (...names) => new B.ColumnDataSource({ data: Object.fromEntries(names.map((n) => [n, []])) });
  const range = (start, end) => new B.Range1d({ start, end });
  function figure(id, options) {
    const fig = P.figure({ sizing_mode: "stretch_both", toolbar_location: null, tools: [], min_border: 4, outline_line_color: null, ...options });
    for (const axis of [...fig.xaxes, ...fig.yaxes]) {
      axis.axis_label_text_font_style = "normal";
      axis.axis_line_color = axis.major_tick_line_color = "#8d97a3";
      axis.minor_tick_line_color = null;
      if (axis.formatter && axis.formatter.use_scientific !== undefined) axis.formatter.use_scientific = false;
    }
    fig.grids.forEach((grid) => { grid.grid_line_color = "#eef0f3"; });
    return fig;
  }
  const show = (fig, id) => P.show(fig, `#${id}`);

  // Cells in space and by depth
  const has = A.x && A.y && A.z, cellSource = source("x", "y", "v", "r"), depthSource = source("left", "right", "top", "bottom", "colour", "word", "n");
  const limits = (a) => { let lo = Infinity, hi = -Infinity; for (const v of a) { if (v < lo) lo = v; if (v > hi) hi = v; } return [lo, hi]; };
  const named = { x: "x (µm)", y: D.has_depth ? "depth from the pia (µm)" : "y (µm)", z: "z (µm)" };
  const extent = has ? { x: limits(A.x), y: limits(A.y), z: limits(A.z) } : {};
  let cells, depth, dots, links, marks;
  if (has) {
    if (D.has_depth) extent.y[0] = Math.min(extent.y[0], 0);
    cells = figure("cells", {
      output_backend: "webgl", tools: "pan,wheel_zoom,box_zoom,reset", active_scroll: "wheel_zoom", toolbar_location: "above",
      x_range: range(0, 1), y_range: range(1, 0), lod_threshold: null,
    });
    dots = cells.circle({ field: "x" }, { field: "y" }, { field: "r" }, { source: cellSource, line_color: null, fill_alpha: 0.75 });
    dots.nonselection_glyph = dots.selection_glyph = dots.glyph;
    links = [0, 1].map((s) => cells.segment({ field: "x0" }, { field: "y0" }, { field: "x1" }, { field: "y1" }, { source: source("x0", "y0", "x1", "y1"), line_color: COLOURS[s], line_alpha: 0.55, line_width: 1.3 }));
    marks = [["triangle", COLOURS[0]], ["inverted_triangle", COLOURS[1]], ["star", "#000000"]].map(([marker, colour]) =>
      cells.scatter({ field: "x" }, { field: "y" }, { source: source("x", "y", "s"), marker, size: { field: "s" }, fill_color: colour, line_color: "#FFFFFF", line_width: 0.7 }));
    depth = figure("depth", { x_range: new B.DataRange1d({ start: 0 }), y_range: range(extent.y[1], extent.y[0]), tools: "hover", min_border_top: 30 });
    depth.quad({ field: "left" }, { field: "right" }, { field: "top" }, { field: "bottom" }, { source: depthSource, fill_color: { field: "colour" }, line_color: { field: "colour" }, line_width: 0.5 });
    depth.toolbar.tools.forEach((t) => { t.tooltips = [["", "@word"], ["cells", "@n{0,0}"]]; });
    depth.xaxes[0].ticker.desired_num_ticks = 3;
    depth.yaxes[0].axis_label = named.y;
    for (const [name, start, end] of D.layers || []) {
      for (const fig of [cells, depth]) {
        fig.add_layout(new B.Span({ location: start, dimension: "width", line_color: "#4a5563", line_width: 0.8 }));
        fig.add_layout(new B.Label({ x: 4, x_units: "screen", y: (start + end) / 2, text: name, text_baseline: "middle", text_font_size: "12px", text_color: "#1c2430", background_fill_color: "#ffffff", background_fill_alpha: 0.7 }));
      }
    }
    if (D.layers && D.layers.length) for (const fig of [cells, depth]) fig.add_layout(new B.Span({ location: D.layers.at(-1)[2], dimension: "width", line_color: "#4a5563", line_width: 0.8 }));
    cells.y_range.change.connect(() => { if (S.view !== "xz") depth.y_range.setv({ start: cells.y_range.start, end: cells.y_range.end }); });
  } else ["cells-card", "depth-card", "view-label"].forEach((id) => { $(id).hidden = true; });

  function fit() {
    if (!has) return;
    const [a, b] = S.view, [x0, x1] = extent[a], [y0, y1] = extent[b];
    const per = 1.04 * Math.max((x1 - x0) / cells.inner_width, (y1 - y0) / cells.inner_height) || 1;
    const x = (x0 + x1) / 2, y = (y0 + y1) / 2, w = per * cells.inner_width / 2, h = per * cells.inner_height / 2;
    cells.x_range.setv({ start: x - w, end: x + w });
    // The pia is on top; seen from it, z goes up.
    cells.y_range.setv(b === "y" ? { start: y + h, end: y - h } : { start: y - h, end: y + h });
    for (const r of [cells.x_range, cells.y_range]) r.setv({ reset_start: r.start, reset_end: r.end });
    cells.xaxes[0].axis_label = named[a];
    cells.yaxes[0].axis_label = named[b];
    [...cells.center].forEach((item) => { if (item.type === "Span" || item.type === "Label") item.visible = b === "y"; });
  }

  function drawCells() {
    // Cells without a value are drawn first, below the others.
    const v = variable(), without = [], others = [];
    const isWithout = v.words ? (i) => v.palette[v.values[i]] === GREY : (i) => Number.isNaN(v.values[i]);
    const filters = V.filter((other) => other.hidden.size);
    for (let i = 0; i < N; i++) if (!filters.some((other) => isHidden(other, i))) (isWithout(i) ? without : others).push(i);
    S.shown = without.concat(others);
    $("shown").textContent = `${say(S.shown.length)} of ${say(N)} cells shown`;
    $("all").hidden = S.shown.length === N;
    if (!has) return;
    const take = (a) => Float32Array.from(S.shown, (i) => a[i]);
    const [low, high] = v.words ? [-0.5, v.words.length - 0.5] : [v.low, v.high];
    dots.glyph.fill_color = { field: "v", transform: new B.LinearColorMapper({ palette: v.palette, low, high, nan_color: GREY }) };
    // The size of a cell body; larger where few cells are shown, or few have a value.
    const size = (n) => Math.max(4, (extent.x[1] - extent.x[0]) / 500) * Math.min(2, Math.max(0.7, (3e4 / n) ** 0.25));
    const small = size(S.shown.length), large = v.words ? small : size(others.length);
    cellSource.data = {
      x: take(A[S.view[0]]), y: take(A[S.view[1]]), v: take(v.values),
      r: Float32Array.from(S.shown, (_, k) => (k < without.length ? small : large)),
    };
    // Bars of depth, stacked in the order of the legend
    const [top, bottom] = extent.y, step = D.has_depth ? Math.max(20, Math.ceil((bottom - top) / 800) * 10) : (bottom - top) / 40 || 1;
    const n = Math.floor((bottom - top) / step) + 1, words = v.words || ["measured", "not measured"];
    const bins = words.map(() => new Float64Array(n)), colours = v.words ? v.palette : ["#5b6675", GREY];
    for (const i of S.shown) {
      const k = v.words ? v.values[i] : Number(Number.isNaN(v.values[i])), bin = Math.floor((A.y[i] - top) / step);
      if (bin >= 0) bins[k][bin]++;
    }
    const bars = { left: [], right: [], top: [], bottom: [], colour: [], word: [], n: [] }, sums = new Float64Array(n);
    bins.forEach((counts, k) => counts.forEach((count, b) => {
      if (!count) return;
      const row = { left: sums[b], right: (sums[b] += count), top: top + b * step, bottom: top + (b + 1) * step, colour: colours[k], word: words[k], n: count };
      for (const key in row) bars[key].push(row[key]);
    }));
    depthSource.data = bars;
    depth.xaxes[0].axis_label = `cells per ${say(step)} µm`;
  }

  function drawLegend() {
    const v = variable(), box = $("legend");
    $("legend-title").textContent = v.name;
    $("legend-title").title = v.about || "";
    $("legend-hint").textContent = `Untick to hide${v.words ? "; click a word to show only that one" : ""}.`;
    box.replaceChildren();
    const row = (key, word, colour, n) => {
      const line = make(box, "label"), tick = make(line, "input");
      tick.type = "checkbox";
      tick.checked = !v.hidden.has(key);
      tick.onchange = () => { v.hidden[tick.checked ? "delete" : "add"](key); redraw(); };
      make(line, "span", "", "swatch").style.background = colour;
      const only = make(line, "button", word, "word");
      only.type = "button";
      only.onclick = () => { v.hidden = new Set(keys.filter((k) => k !== key)); redraw(); };
      make(line, "span", say(n), "n");
    };
    let keys = [0, -1];
    if (v.words) {
      const n = new Float64Array(v.words.length);
      for (const code of v.values) n[code]++;
      keys = v.words.map((_, k) => k);
      keys.forEach((k) => row(k, v.words[k], v.palette[k], n[k]));
    } else {
      make(box, "div", "", "scale").style.background = `linear-gradient(to right, ${v.palette.join()})`;
      const ends = make(box, "div", "", "ends");
      [v.low, (v.low + v.high) / 2, v.high].forEach((x) => make(ends, "span", say(x, 3)));
      if (v.units) make(box, "p", v.units, "hint");
      const missing = v.values.reduce((n, x) => n + Number.isNaN(x), 0);
      row(0, "measured", "#5b6675", N - missing);
      row(-1, "not measured", GREY, missing);
    }
  }

  // Connections between groups
  const groupSource = source("pre", "post", "v", "n", "share", "mean", "pairs");
  let groups, groupMap, groupRect, groupBar;
  const measures = [["n", "number of connections"], ["share", "connected pairs (%)"], ["mean", "mean"]];
  const G = () => grouping() && grouping().groups;
  if (D.connections && V.some((v) => v.groups)) {
    measures[2][1] = `mean ${D.connections.weight_name} ${D.connections.units && `(${D.connections.units})`}`;
    // Pairs that the file does not name may be connected: there is no share.
    measures.filter(([m]) => m !== "share" || D.connections.scope_known).forEach(([m, words]) => { make($("measure"), "option", words).value = m; });
    groups = figure("groups", { x_range: new B.FactorRange(), y_range: new B.FactorRange(), tools: "hover" });
    groupRect = groups.rect({ field: "post" }, { field: "pre" }, 0.96, 0.96, { source: groupSource, line_color: null });
    groups.toolbar.tools.forEach((t) => { t.tooltips = [["from", "@pre"], ["onto", "@post"], ["connections", "@n"], ["share of pairs", "@share"], [measures[2][1], "@mean"]]; });
    groups.xaxes[0].axis_label = "onto (postsynaptic)";
    groups.yaxes[0].axis_label = "from (presynaptic)";
    groups.xaxes[0].major_label_orientation = 0.8;
    groupBar = new B.ColorBar({ color_mapper: new B.LinearColorMapper({ palette: ["#ffffff"] }), width: 10, padding: 2, label_standoff: 4 });
    groups.add_layout(groupBar, "right");
    $("measure").onchange = drawGroups;
  } else {
    $("groups-card").hidden = true;
    $("neuron-card").classList.add("full");
  }

  function drawGroups() {
    if (!groups || !G()) return;
    const g = G(), v = grouping(), m = $("measure").value;
    const kept = (words) => words.filter((w) => !v.hidden.has(v.words.indexOf(w)));
    const pre = kept(g.pre.filter((_, i) => g.n[i].some(Boolean))), post = kept(g.post.filter((_, j) => g.n.some((row) => row[j])));
    const without = v.words.filter((w) => !pre.includes(w) && !post.includes(w) && !v.hidden.has(v.words.indexOf(w)));
    const data = { pre: [], post: [], v: [], n: [], share: [], mean: [] };
    for (const a of pre) for (const b of post) {
      const i = g.pre.indexOf(a), j = g.post.indexOf(b), n = g.n[i][j], mean = g.mean[i][j];
      const share = 100 * n / (g.n_pre[i] * g.n_post[j]);
      const row = {
        pre: a, post: b, v: m === "mean" ? (mean ?? NaN) : n ? (m === "n" ? n : share) : NaN,
        n: n || D.connections.scope_known ? say(n) : "not known", mean: mean === null ? "no connection" : say(mean),
        share: D.connections.scope_known ? `${say(share, 3)} % of ${say(g.n_pre[i])} × ${say(g.n_post[j])}` : "not known",
      };
      for (const key in row) data[key].push(row[key]);
    }
    groups.x_range.factors = post;
    groups.y_range.factors = pre.slice().reverse();
    const found = data.v.filter(Number.isFinite), high = Math.max(...found, 1e-9), low = Math.min(...found, high);
    const palette = B.Palettes ? B.Palettes.Viridis256 : VIRIDIS, log = m === "n" && high > 50 * low;
    const mapper = new B[log ? "LogColorMapper" : "LinearColorMapper"]({ palette, low: log ? low : Math.min(low, m === "mean" ? low : 0), high: high > low ? high : low * 1.01, nan_color: "#ffffff" });
    groupRect.glyph.fill_color = { field: "v", transform: mapper };
    groupBar.color_mapper = mapper;
    groupSource.data = data;
    $("groups-hint").textContent = `of ${v.name}; all cells, whichever are shown. White: ${D.connections.scope_known ? "no connection" : "none listed, but there may be some"}.${without.length ? ` Without any: ${without.join(", ")}.` : ""}`;
  }

  // One neuron
  function choose(i) {
    S.chosen = i;
    drawNeuron();
    drawCurves();
  }
  const about = (i) => ["cell_type", "layer", "brain_area"].map((name) => V.find((v) => v.array === `of ${name}`)).filter(Boolean).map((v) => value(v, i)).join(" · ");
  function drawNeuron() {
    const i = S.chosen, box = $("neuron"), known = (n) => (n < 0 ? "not known" : say(n));
    let hint = "Drag to move, scroll or pinch to zoom, click a cell.";
    if (i >= 0) hint = `Star: cell ${A.nucleus_id[i]}${D.connections ? `. Blue triangles: its inputs (${known(A.in_degree[i])}); orange: its outputs (${known(A.out_degree[i])})` : ""}. More below.`;
    $("cells-hint").textContent = hint;
    box.replaceChildren();
    if (has) {
      dots.glyph.fill_alpha = i < 0 ? 0.75 : 0.14;
      [...links, ...marks].forEach((r) => { r.data_source.data = Object.fromEntries(Object.keys(r.data_source.data).map((k) => [k, []])); });
    }
    $("neuron-title").textContent = i < 0 ? "A cell" : `Cell ${A.nucleus_id[i]} `;
    if (i >= 0) make($("neuron-title"), "button", "Close").onclick = () => choose(-1);
    if (i < 0) {
      make(box, "p", `Click on a cell to see ${D.connections ? "its inputs and outputs, here and in space" : "what is known of it"}. ${D.connections ? "Until then, how many partners the cells have:" : ""}`);
      if (D.connections) {
        const words = ["0", "1", ...Array.from({ length: 20 }, (_, k) => `${say(2 ** (k + 1))} to ${say(2 ** (k + 2) - 1)}`)];
        const counts = [A.in_degree, A.out_degree].map((degree) => {
          const n = words.map(() => 0);
          // Below 0 the number is not known.
          for (const d of degree) if (d >= 0) n[d ? Math.floor(Math.log2(d)) + 1 : 0]++;
          return n;
        });
        drawBars(make(box, "div", "", "figure all"), words, counts, "cells with so many inputs (blue) and outputs (orange)");
      }
      return;
    }
    const list = make(box, "dl"), fact = (a, b) => { const pair = make(list, "div"); make(pair, "dt", a); make(pair, "dd", b); };
    if (A.pt_root_id) fact("root id", A.pt_root_id[i]);
    if (has) fact(D.has_depth ? "depth" : "y", Number.isFinite(A.y[i]) ? `${say(A.y[i])} µm` : "not measured");
    V.forEach((v) => fact(v.name, value(v, i)));
    if (has) marks[2].data_source.data = { x: [A[S.view[0]][i]], y: [A[S.view[1]][i]], s: [20] };
    if (!inputs) return; // none, or not unpacked yet, after which this is drawn again
    const v = grouping(), chart = make(box, "div", "", "figure"), side = make(box, "div", "", "partners"), counts = [];
    const both = [["in", "inputs", inputs(i), A.in_degree[i]], ["out", "outputs", outputs(i), A.out_degree[i]]];
    both.forEach(([cls, name, pairs, n], s) => {
      pairs.sort((a, b) => b.w - a.w);
      const listed = pairs.length < n ? `, ${say(pairs.length)} of them listed` : "";
      const heading = make(side, "h3", n < 0 ? `${name}: not known` : `${say(n)} ${name}${listed}`, cls);
      heading.title = n < 0 ? "the connections of this neuron were not asked for, or are not listed" : "";
      pairs.slice(0, 7).forEach((p) => {
        const row = make(side, "button");
        make(row, "span", A.nucleus_id[p.i]);
        make(row, "span", about(p.i).split(" · ")[0]);
        make(row, "span", say(p.w) + (A.synapse_count ? ` (${A.synapse_count[p.k]})` : ""));
        row.onclick = () => choose(p.i);
      });
      if (pairs.length > 7) make(side, "div", `… ${say(pairs.length - 7)} more`, "hint");
      if (v) {
        counts[s] = v.words.map(() => 0);
        pairs.forEach((p) => { counts[s][v.values[p.i]]++; });
      }
      if (has && pairs.length) {
        const [a, b] = [...S.view].map((axis) => A[axis]), fill = (x) => pairs.map(() => x), top = pairs[0].w || 1;
        links[s].data_source.data = { x0: fill(a[i]), y0: fill(b[i]), x1: pairs.map((p) => a[p.i]), y1: pairs.map((p) => b[p.i]) };
        marks[s].data_source.data = { x: pairs.map((p) => a[p.i]), y: pairs.map((p) => b[p.i]), s: pairs.map((p) => 6 + 8 * Math.sqrt(Math.max(0, p.w / top))) };
      }
    });
    make(side, "div", `Sorted by ${D.connections.weight}${A.synapse_count ? "; in brackets, the number of synapses" : ""}. Click one to go there.`, "hint");
    if (v) drawBars(chart, v.words, counts, `number of partners, by ${v.name}`);
  }

  // Two bars for each word: of inputs and of outputs
  function drawBars(box, words, counts, label) {
    const kept = words.filter((_, k) => counts[0][k] || counts[1][k]);
    if (!kept.length) { make(box, "p", "No partner is listed.", "hint"); return; }
    box.id = "bars";
    box.style.height = `${Math.max(130, 60 + Math.min(30, 400 / kept.length) * kept.length)}px`;
    const fig = figure("bars", { x_range: new B.DataRange1d({ start: 0 }), y_range: new B.FactorRange({ factors: kept.slice().reverse() }) });
    counts.forEach((n, s) => fig.hbar({
      y: { field: "y" }, right: { field: "n" }, height: 0.36, fill_color: COLOURS[s], line_color: null,
      source: new B.ColumnDataSource({ data: { y: kept.map((w) => [w, s ? -0.2 : 0.2]), n: kept.map((w) => n[words.indexOf(w)]) } }),
    }));
    fig.xaxes[0].axis_label = label;
    show(fig, "bars");
  }

  // Currents and rates by angle
  const curves = {};
  for (const name of ["currents", "rates"]) {
    if (!A[name]) { $(`${name}-card`).hidden = true; continue; }
    const T = D.tuning, fig = figure(name, { x_range: range(0, T.period), y_range: new B.DataRange1d(), tools: "hover" });
    const many = source("xs", "ys", "colour", "word", "n"), one = source("x", "y");
    const lines = fig.multi_line({ field: "xs" }, { field: "ys" }, { source: many, line_color: { field: "colour" }, line_width: 2 });
    fig.line({ field: "x" }, { field: "y" }, { source: one, line_color: "#000000", line_width: 3 });
    fig.toolbar.tools.forEach((t) => { t.tooltips = [["mean of", "@word"], ["neurons", "@n{0,0}"]]; t.renderers = [lines]; t.line_policy = "interp"; });
    fig.xaxes[0].axis_label = `${T.dim} of the stimulus (degrees)`;
    fig.xaxes[0].ticker = new B.FixedTicker({ ticks: [0, 1, 2, 3, 4].map((q) => q * T.period / 4) });
    fig.yaxes[0].axis_label = name === "currents" ? "input current" : "mean response";
    $(`${name}-title`).textContent = name === "currents" ? `Input current by ${T.dim}` : `Response by ${T.dim}`;
    curves[name] = { fig, many, one };
  }

  function drawCurves() {
    const v = variable().words ? variable() : grouping() || variable();
    for (const name in curves) {
      const { many, one } = curves[name], T = D.tuning, K = T.angles.length, a = A[name];
      // The circle is closed: the first angle comes again at the period.
      const close = (row) => [...row, row[0]], xs = close(T.angles).map((x, k) => (k === K ? T.angles[0] + T.period : x));
      const sums = v.words.map(() => new Float64Array(K)), n = new Float64Array(v.words.length);
      for (const i of S.shown) {
        if (!a.subarray(i * K, i * K + K).every(Number.isFinite) || (name === "currents" && !A.in_degree[i])) continue;
        n[v.values[i]]++;
        for (let k = 0; k < K; k++) sums[v.values[i]][k] += a[i * K + k];
      }
      const least = n.some((x) => x >= 5) ? 5 : 1, few = v.words.filter((_, c) => n[c] && n[c] < least);
      const codes = S.chosen < 0 ? v.words.map((_, c) => c).filter((c) => n[c] >= least) : [];
      many.data = { xs: codes.map(() => xs), ys: codes.map((c) => close(Array.from(sums[c], (s) => s / n[c]))), colour: codes.map((c) => v.palette[c]), word: codes.map((c) => v.words[c]), n: codes.map((c) => n[c]) };
      const i = S.chosen, row = i < 0 ? [] : Array.from(a.subarray(i * K, i * K + K)), known = row.length && Number.isFinite(row[0]);
      one.data = known ? { x: xs, y: close(row) } : { x: [], y: [] };
      let hint = `mean of the shown cells by ${v.name}, ${say(n.reduce((s, x) => s + x, 0))} with ${name === "currents" ? "input from neurons with a measured response" : "a measured response"}; colours as in the legend of ${v.name}.${few.length ? ` Not drawn, with fewer than 5 cells: ${few.join(", ")}.` : ""}`;
      if (i >= 0) hint = `cell ${A.nucleus_id[i]}${known ? "" : name === "currents" ? ": not known, none of its known inputs has a measured response" : ": not measured"}.`;
      if (i >= 0 && known && name === "currents") hint += ` Partners with a measured response make up ${say(100 * A.rated_fraction[i], 3)} % of its input weight.`;
      $(`${name}-hint`).textContent = `${T[name]}: ${hint}${T.zero && ` Angles: ${T.zero}.`}`;
    }
  }

  function redraw() {
    drawCells();
    drawLegend();
    drawGroups();
    drawCurves();
  }

  // Clicks: the nearest shown cell within a few pixels, which also works for a finger.
  function nearest(e, pixels) {
    const [a, b] = [...S.view].map((axis) => A[axis]), per = (cells.x_range.end - cells.x_range.start) / cells.inner_width;
    let best = (pixels * per) ** 2, found = -1;
    for (const i of S.shown) {
      const d = (a[i] - e.x) ** 2 + (b[i] - e.y) ** 2;
      if (d < best) { best = d; found = i; }
    }
    return found;
  }

  $("title").textContent = D.title;
  D.counts.forEach(([name, n]) => { const li = make($("counts"), "li"); make(li, "b", say(n)); li.append(` ${name}`); });
  V.forEach((v, k) => { make($("colour"), "option", v.name).value = k; });
  if (D.absent.length) make($("notes"), "li", `Not in this data: ${D.absent.join(", ")}.`);
  if (D.connections) make($("notes"), "li", `Scope of the connections: ${D.connections.scope}.`);
  D.notes.forEach((note) => make($("notes"), "li", note));
  D.provenance.forEach(([name, words]) => { const tr = make($("provenance"), "tr"); make(tr, "td", name); make(tr, "td", words); });
  $("colour").onchange = () => { S.by = Number($("colour").value); redraw(); if (S.chosen >= 0) drawNeuron(); };
  $("view").onchange = () => { S.view = $("view").value; fit(); drawCells(); drawNeuron(); };
  $("all").onclick = () => { V.forEach((v) => v.hidden.clear()); redraw(); };
  const idOf = (word) => { try { return BigInt(word.trim()); } catch { return null; } };
  $("find").onsubmit = (e) => {
    e.preventDefault();
    const id = idOf($("query").value), i = [A.nucleus_id, A.pt_root_id].map((ids) => (ids && id !== null ? ids.indexOf(id) : -1)).find((k) => k >= 0);
    if (i === undefined) $("shown").textContent = `There is no cell ${$("query").value}.`;
    else choose(i);
  };
  $("any").onclick = () => {
    const rich = S.shown.filter((i) => !D.connections || (A.in_degree[i] > 0 && A.out_degree[i] > 0));
    const from = rich.length ? rich : S.shown;
    if (from.length) choose(from[Math.floor(Math.random() * from.length)]);
  };

  $("main").hidden = false;
  if (has) {
    await Promise.all([show(cells, "cells"), show(depth, "depth")]);
    cells.on_event("tap", (e) => { const i = nearest(e, 10); if (i >= 0) choose(i); });
    cells.on_event("mousemove", (e) => {
      const i = nearest(e, 8), box = $("cells").getBoundingClientRect();
      $("tip").hidden = i < 0;
      if (i < 0) return;
      $("tip").textContent = `${A.nucleus_id[i]}  ${about(i)}`;
      $("tip").style.left = `${box.left + scrollX + e.sx + 14}px`;
      $("tip").style.top = `${box.top + scrollY + e.sy + 10}px`;
    });
    cells.on_event("mouseleave", () => { $("tip").hidden = true; });
  }
  fit();
  redraw();
  $("state").hidden = true;
  // Let the browser show the cells before the rest is unpacked and drawn.
  await new Promise((done) => { requestAnimationFrame(() => setTimeout(done)); });
  performance.mark("cells");
  if (D.connections) await unpackPairs();
  drawNeuron();
  if (groups) await show(groups, "groups");
  for (const name in curves) await show(curves[name].fig, name);
  let timer;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(fit, 200); });
  performance.mark("all");
  document.body.dataset.ready = "yes";
  window.page = { D, A, S, V, choose, nearest, cells, cellSource, links, groupSource, curves };
})().catch((error) => {
  document.getElementById("state").textContent = `The page could not be drawn: ${error}`;
  throw error;
});
