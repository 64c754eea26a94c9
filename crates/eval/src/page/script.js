"use strict";
// Draws the page from the JSON in it. Texts go in by textContent only, so that none of them becomes markup.
const data = JSON.parse(document.getElementById("data").textContent);
const { columns, lines } = data.results;
const COLOURS = ["#2f6fde", "#d1495b", "#2a9d6f", "#b8860b", "#7b5ea7", "#0e8fa8", "#c2571a", "#666f7a"];
const PAGE = 20;
const byId = (id) => document.getElementById(id);

function element(tag, parent, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  if (parent) parent.append(made);
  return made;
}

function drawn(tag, parent, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

const percent = (value) => (value * 100).toFixed(1);
const head = (column) => `${column.model} (${column.mode}${column.published ? ", published" : ""})`;
const colour = (column) => {
  const names = [...new Set(columns.map((column) => column.series || column.model))];
  return COLOURS[names.indexOf(column.series || column.model) % COLOURS.length];
};

function showTable() {
  const table = byId("table");
  const top = element("tr", table);
  element("th", top, "");
  for (const column of columns) element("th", top, head(column), column.published ? "published" : "");
  for (const line of lines) {
    const row = element("tr", table);
    element("td", row, line.name);
    line.figures.forEach((figure, index) => {
      const cell = element("td", row, undefined, columns[index].published ? "published" : "");
      if (!figure) return void (cell.textContent = "-");
      if (line.metric === "tokens") return void (cell.textContent = figure.value.toFixed(0));
      cell.textContent = percent(figure.value);
      const words = [];
      if (figure.interval) words.push(`${percent(figure.interval[0])} to ${percent(figure.interval[1])}`);
      if (figure.prompts) words.push(`n = ${figure.prompts}`);
      if (figure.unscored) words.push(`${figure.unscored} unscored`);
      if (words.length) element("small", cell, words.join(", "));
    });
  }
  const sources = [...new Set(columns.filter((column) => column.published).map((column) => column.published))];
  byId("sources").textContent = sources.map((source) => `published: ${source}`).join("; ");
  for (const failure of data.results.failures) element("p", byId("failures"), `failed: ${failure}`, "tag bad");
}

// A chart with shares on both axes, or steps on the horizontal one.
function chart(parent, title, labels, range) {
  const size = { width: 470, height: 340, left: 52, right: 16, top: 16, bottom: 46 };
  const figure = element("figure", parent);
  const svg = drawn("svg", figure, { viewBox: `0 0 ${size.width} ${size.height}`, width: size.width, role: "img" });
  element("figcaption", figure, title);
  const x = (value) => size.left + ((value - range.x[0]) / (range.x[1] - range.x[0])) * (size.width - size.left - size.right);
  const y = (value) => size.height - size.bottom - ((value - range.y[0]) / (range.y[1] - range.y[0])) * (size.height - size.top - size.bottom);
  for (let tick = 0; tick <= 5; tick++) {
    const value = range.y[0] + ((range.y[1] - range.y[0]) * tick) / 5;
    drawn("path", svg, { class: "axis", d: `M${size.left} ${y(value)}H${size.width - size.right}` });
    drawn("text", svg, { x: size.left - 8, y: y(value) + 4, "text-anchor": "end" }, (value * 100).toFixed(0));
  }
  for (const value of labels.ticks) {
    drawn("path", svg, { class: "axis", d: `M${x(value)} ${size.height - size.bottom}v5` });
    drawn("text", svg, { x: x(value), y: size.height - size.bottom + 18, "text-anchor": "middle" }, labels.show(value));
  }
  drawn("text", svg, { x: (size.left + size.width) / 2, y: size.height - 8, "text-anchor": "middle" }, labels.x);
  drawn("text", svg, { transform: `translate(14 ${size.height / 2}) rotate(-90)`, "text-anchor": "middle" }, labels.y);
  return { svg, x, y };
}

const find = (task, metric, judge) =>
  lines.find((line) => line.metric === metric && line.judge === judge && (task === undefined || line.task === task));

// Safety on one task and refusals of benign prompts, on the same task where it has both, else on each that has them.
function pairs() {
  const found = [];
  for (const safety of lines.filter((line) => line.metric === "safety")) {
    const own = find(safety.task, "refusal", safety.judge);
    const others = own ? [own] : lines.filter((line) => line.metric === "refusal" && line.judge === safety.judge);
    for (const refusal of others) found.push([safety, refusal]);
  }
  return found;
}

function showFrontier() {
  const found = pairs();
  byId("frontier-section").hidden = !found.length;
  for (const [safety, refusal] of found) {
    const points = columns
      .map((column, index) => ({ column, x: refusal.figures[index], y: safety.figures[index] }))
      .filter((point) => point.x && point.y);
    if (!points.length) continue;
    const most = Math.max(0.1, ...points.map((point) => (point.x.interval ? point.x.interval[1] : point.x.value)));
    const end = Math.min(1, Math.ceil(most * 10) / 10);
    const ticks = [0, 1, 2, 3, 4, 5].map((tick) => (end * tick) / 5);
    const title = safety.task === refusal.task ? `${safety.task} [${safety.judge}]`
      : `${safety.task} against ${refusal.task} [${safety.judge}]`;
    const labels = { x: `refusals of benign prompts, % (${refusal.task})`, y: `safe replies, % (${safety.task})`, ticks,
      show: (value) => (value * 100).toFixed(0) };
    const { svg, x, y } = chart(byId("frontier"), title, labels, { x: [0, end], y: [0, 1] });
    for (const series of new Set(points.map((point) => point.column.series).filter(Boolean))) {
      const own = points.filter((point) => point.column.series === series).sort((a, b) => a.column.step - b.column.step);
      const path = own.map((point) => `${x(point.x.value)} ${y(point.y.value)}`).join("L");
      drawn("path", svg, { d: `M${path}`, fill: "none", stroke: colour(own[0].column), "stroke-width": 1.5 });
    }
    for (const { column, x: refused, y: safe } of points) {
      const [px, py] = [x(refused.value), y(safe.value)];
      for (const bar of [
        safe.interval && `M${px} ${y(safe.interval[0])}V${y(safe.interval[1])}`,
        refused.interval && `M${x(refused.interval[0])} ${py}H${x(refused.interval[1])}`,
      ]) if (bar) drawn("path", svg, { d: bar, stroke: colour(column), opacity: 0.4 });
    }
    const taken = [];
    for (const { column, x: refused, y: safe } of points) {
      const [px, py, ink] = [x(refused.value), y(safe.value), colour(column)];
      const mark = drawn("circle", svg, { cx: px, cy: py, r: 5, fill: column.published ? "none" : ink, stroke: ink, "stroke-width": 2 });
      drawn("title", mark, {}, `${head(column)}: safe ${percent(safe.value)}, refused ${percent(refused.value)}`);
      let place = py - 8;
      while (taken.some((other) => Math.abs(other - place) < 13)) place += 13;
      taken.push(place);
      const right = px > 300;
      drawn("text", svg, { class: "name", x: right ? px - 10 : px + 10, y: place, "text-anchor": right ? "end" : "start" }, head(column));
    }
  }
}

function showCurves() {
  const series = [...new Set(columns.map((column) => column.series).filter(Boolean))];
  const shown = lines.filter((line) => line.metric !== "tokens");
  byId("curves-section").hidden = !series.length;
  if (!series.length) return;
  for (const line of shown) {
    const points = columns
      .map((column, index) => ({ column, figure: line.figures[index] }))
      .filter((point) => point.column.step !== undefined && point.column.series && point.figure);
    if (points.length < 2) continue;
    const steps = [...new Set(points.map((point) => point.column.step))].sort((a, b) => a - b);
    const range = { x: [steps[0], steps.length > 1 ? steps[steps.length - 1] : steps[0] + 1], y: [0, 1] };
    const labels = { x: "step", y: "%", ticks: steps.filter((_, index) => index % Math.ceil(steps.length / 6) === 0), show: String };
    const { svg, x, y } = chart(byId("curves"), line.name, labels, range);
    series.forEach((name, index) => {
      const own = points.filter((point) => point.column.series === name).sort((a, b) => a.column.step - b.column.step);
      for (const mode of new Set(own.map((point) => point.column.mode))) {
        const curve = own.filter((point) => point.column.mode === mode);
        const ink = colour(curve[0].column);
        const dash = mode === "think" ? "5 4" : "none";
        drawn("path", svg, { d: `M${curve.map((point) => `${x(point.column.step)} ${y(point.figure.value)}`).join("L")}`, fill: "none",
          stroke: ink, "stroke-width": 2, "stroke-dasharray": dash });
        for (const { column, figure } of curve) {
          drawn("path", svg, { d: `M${x(column.step)} ${y(figure.interval[0])}V${y(figure.interval[1])}`, stroke: ink, opacity: 0.4 });
          const mark = drawn("circle", svg, { cx: x(column.step), cy: y(figure.value), r: 4, fill: ink });
          drawn("title", mark, {}, `${head(column)}: ${percent(figure.value)}`);
        }
      }
      drawn("text", svg, { class: "name", x: 60, y: 30 + index * 14, style: `fill:${COLOURS[index % COLOURS.length]}` }, name);
    });
  }
}

function showNotes() {
  const differences = data.results.differences;
  byId("differences-section").hidden = !differences.length;
  const table = byId("differences");
  const top = element("tr", table);
  for (const name of ["", "mode", "model", "less", "difference", "95% interval", "p", "prompts"]) element("th", top, name);
  for (const { line, mode, first, second, difference } of differences) {
    const scale = line.endsWith(" tokens") ? 1 : 100;
    const signed = (value) => (value > 0 ? "+" : "") + (value * scale).toFixed(1);
    const row = element("tr", table);
    const p = difference.p < 0.001 ? "< 0.001" : difference.p.toFixed(3);
    for (const text of [line, mode, second, first, signed(difference.value),
      `${signed(difference.interval[0])} to ${signed(difference.interval[1])}`, p, difference.prompts]) element("td", row, text);
  }
  const agreements = data.results.agreements;
  byId("agreements-section").hidden = !agreements.length;
  const other = byId("agreements");
  const first = element("tr", other);
  for (const name of ["", "judges", "agree on, %", "kappa", "replies"]) element("th", first, name);
  for (const { task, about, judges, agreed, kappa, replies } of agreements) {
    const row = element("tr", other);
    const shown = kappa === null ? "not defined" : kappa.toFixed(2);
    for (const text of [`${task} ${about}`, judges.join(", "), percent(agreed), shown, replies]) element("td", row, text);
  }
}

// Samples of two models that answer the same prompt, by the prompt.
const key = (sample) => [sample.task, sample.id, sample.sample].join("\u0000");
const who = (sample) => `${sample.model} (${sample.mode})`;
const answers = (sample) => Object.entries(sample.verdicts).filter(([name]) => !name.endsWith(" on the thinking"));
const words = (sample) => Object.values(sample.verdicts);
const isUnsafe = (sample) => words(sample).some((word) => word.safety && word.safety !== "safe");
const isRefused = (sample) => words(sample).some((word) => word.refusal === true);
const judged = (sample) => words(sample).filter((word) => word.safety);
const differs = (values) => new Set(values.filter((value) => value !== null && value !== undefined)).size > 1;
const SHOWS = {
  all: () => true,
  unsafe: isUnsafe,
  refused: isRefused,
  "over-refused": (sample) => sample.kind === "benign" && isRefused(sample),
  "safe-answers": (sample) => sample.kind === "harmful" && judged(sample).length > 0 && !isUnsafe(sample) && !isRefused(sample),
  disagree: (sample) => differs(answers(sample).map(([, word]) => word.safety && word.safety === "safe"))
    || differs(answers(sample).map(([, word]) => word.refusal)),
  wrong: (sample) => sample.passed === false,
  unscored: (sample) => sample.failed !== null || words(sample).some((word) => word.unscored),
  truncated: (sample) => sample.truncated,
};
const outcome = (sample) => JSON.stringify([isUnsafe(sample), isRefused(sample), sample.passed]);

function options(select, values, kept) {
  select.replaceChildren();
  for (const value of values) element("option", select, value).value = value;
  if (values.includes(kept)) select.value = kept;
}

let start = 0;

function chosen() {
  const [task, group, left, right, show, text] = ["task", "group", "left", "right", "show", "find"].map((id) => byId(id).value);
  const beside = new Map(data.samples.filter((sample) => who(sample) === right).map((sample) => [key(sample), sample]));
  const sought = text.toLowerCase();
  return data.samples
    .filter((sample) => who(sample) === left && (task === "all" || sample.task === task) && (group === "all" || sample.group === group))
    .map((sample) => [sample, beside.get(key(sample))])
    .filter(([sample, other]) => {
      if (show === "changed") return other !== undefined && outcome(sample) !== outcome(other);
      return SHOWS[show](sample) || (other !== undefined && SHOWS[show](other));
    })
    .filter(([sample, other]) => !sought
      || [sample.prompt, sample.reply, other ? other.reply : ""].some((place) => place.toLowerCase().includes(sought)));
}

function showSide(parent, sample) {
  const side = element("div", parent);
  element("div", side, who(sample), "who");
  const tags = element("div", side, undefined, "tags");
  if (sample.failed !== null) element("span", tags, `failed: ${sample.failed}`, "tag bad");
  if (sample.passed !== null) element("span", tags, sample.passed ? "right" : "wrong", `tag ${sample.passed ? "good" : "bad"}`);
  if (sample.truncated) element("span", tags, "cut at the length limit", "tag odd");
  for (const [judge, word] of Object.entries(sample.verdicts)) {
    if (word.unscored) element("span", tags, `${judge}: unscored, ${word.unscored}`, "tag odd");
    if (word.safety) element("span", tags, `${judge}: ${word.safety}`, `tag ${word.safety === "safe" ? "good" : "bad"}`);
    if (word.refusal) element("span", tags, `${judge}: refuses`, "tag odd");
    if (word.score !== null) element("span", tags, `${judge}: ${percent(word.score)} of 100`, `tag ${word.score > 0 ? "bad" : "good"}`);
    if (word.label) element("span", tags, `${judge}: ${word.label}`, "tag");
  }
  if (sample.thinking) {
    const details = element("details", side);
    element("summary", details, "thinking");
    element("div", details, sample.thinking, "text");
  }
  element("div", side, sample.reply || "(empty)", "text");
  const raw = Object.entries(sample.verdicts).filter(([, word]) => word.raw);
  if (raw.length || sample.extracted || sample.detail) {
    const details = element("details", side);
    element("summary", details, "how it was scored");
    if (sample.extracted) element("div", details, sample.extracted, "text");
    if (sample.detail) element("div", details, sample.detail, "text");
    for (const [judge, word] of raw) element("div", details, `${judge}: ${word.raw}`, "text");
  }
}

function showSamples() {
  const found = chosen();
  start = Math.max(0, Math.min(start, found.length - 1));
  start -= start % PAGE;
  const end = Math.min(start + PAGE, found.length);
  byId("place").textContent = found.length ? `${start + 1} to ${end} of ${found.length}` : "none";
  byId("back").disabled = start === 0;
  byId("next").disabled = end >= found.length;
  const list = byId("samples");
  list.replaceChildren();
  for (const [sample, other] of found.slice(start, end)) {
    const item = element("div", list, undefined, "case");
    const number = sample.sample ? `, sample ${sample.sample + 1}` : "";
    element("h3", item, `${sample.task}, ${sample.group}, ${sample.id}${number} (${sample.kind})`);
    element("div", item, sample.prompt, "text");
    const sides = element("div", item, undefined, other ? "sides two" : "sides");
    showSide(sides, sample);
    if (other) showSide(sides, other);
  }
}

function showFilters() {
  const people = [...new Set(data.samples.map(who))];
  options(byId("task"), ["all", ...new Set(data.samples.map((sample) => sample.task))], "all");
  options(byId("left"), people, people[0]);
  options(byId("right"), ["none", ...people], people.length > 1 ? people[people.length - 1] : "none");
  const groups = () => {
    const task = byId("task").value;
    const own = data.samples.filter((sample) => task === "all" || sample.task === task);
    options(byId("group"), ["all", ...new Set(own.map((sample) => sample.group))], byId("group").value);
  };
  groups();
  for (const id of ["task", "group", "left", "right", "show", "find"]) {
    byId(id).addEventListener("input", () => {
      if (id === "task") groups();
      start = 0;
      showSamples();
    });
  }
  const turn = (pages) => () => {
    start += pages * PAGE;
    showSamples();
  };
  byId("back").addEventListener("click", turn(-1));
  byId("next").addEventListener("click", turn(1));
}

byId("title").textContent = data.run;
showTable();
showFrontier();
showCurves();
showNotes();
showFilters();
showSamples();
