// The live page: reads /metrics every second and draws what it finds. Counters become rates, histograms become percentiles.

import { translate, word } from "./i18n.js";
import { drawIcons } from "./icons.js";
import { element } from "./markdown.js";

const EVERY_MS = 1000;
const NUM_SAMPLES = 300;
const MIN_SAMPLES = 60; // a page just opened shows one minute, which grows to five
const RATE_SAMPLES = 5; // rates are over so many seconds, so that the line can be read
const PERCENTILE_SAMPLES = 60;
const PERCENTILES = [50, 90, 99];
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 320;
const HEIGHT = 90;
const COLOURS = ["a", "b", "c"];

const percent = (value) => `${(value * 100).toFixed(1)} %`;
const count = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(value % 1 ? 1 : 0));
const seconds = (value) => (value < 0.9995 ? `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms` : `${value.toFixed(2)} s`);
const rate = (value) => `${count(value)} ${word("perSec")}`.replace(" /", "/");

const LOAD = [
  { title: "throughput", format: rate, lines: [["generated", rateOf("generation_tokens_total")], ["prompt", rateOf("prompt_tokens_total")]] },
  { title: "requests", format: rate, lines: [["", rateOf("request_success_total")]] },
  { title: "queue", format: count, lines: [["running", gauge("num_requests_running")], ["waiting", gauge("num_requests_waiting")]] },
  { title: "queueTime", format: seconds, lines: percentiles("request_queue_time_seconds") },
  { title: "kv", format: percent, top: 1, lines: [["", gauge("kv_cache_usage_perc")]] },
  { title: "prefix", format: percent, top: 1, lines: [["", share("prefix_cache_hits_total", "prefix_cache_queries_total")]] },
];
const LATENCY = [
  { title: "ttft", format: seconds, lines: percentiles("time_to_first_token_seconds") },
  { title: "itl", format: seconds, lines: percentiles("inter_token_latency_seconds") },
  { title: "e2e", format: seconds, lines: percentiles("e2e_request_latency_seconds") },
];

// Samples, oldest first: {time_s, values: name -> sum over labels, buckets: name -> [[upper, cumulative count], ...]}; null = no answer.
const samples = [];

function parse(text) {
  const values = new Map();
  const buckets = new Map();
  for (const line of text.split("\n")) {
    const found = line.match(/^vllm:(\w+)(\{.*\})? (\S+)$/);
    if (!found) continue;
    const [, name, labels, written] = found;
    const bound = name.endsWith("_bucket") && labels.match(/[{,]le="([^"]+)"/);
    if (bound) {
      const key = name.slice(0, -"_bucket".length);
      if (!buckets.has(key)) buckets.set(key, []);
      buckets.get(key).push([bound[1] === "+Inf" ? Infinity : Number(bound[1]), Number(written)]);
    } else values.set(name, (values.get(name) ?? 0) + Number(written));
  }
  return { time_s: performance.now() / 1000, values, buckets };
}

// ---- what the lines show: sample number -> value, or null where there is none ----

function gauge(name) {
  return (at) => samples[at]?.values.get(name) ?? null;
}

// The latest sample at least so far back, or the oldest since an interruption.
function earlier(at, distance) {
  let from = at;
  while (from > 0 && at - from < distance && samples[from - 1]) from -= 1;
  return from === at ? null : samples[from];
}

function growth(name, before, now) {
  const from = before.values.get(name) ?? 0;
  const to = now.values.get(name) ?? 0;
  return to < from ? to : to - from; // a server that was started anew counts from 0
}

function rateOf(name) {
  return (at) => {
    const now = samples[at];
    const before = now && earlier(at, RATE_SAMPLES);
    return before ? growth(name, before, now) / (now.time_s - before.time_s) : null;
  };
}

function share(part, whole) {
  return (at) => {
    const now = samples[at];
    const before = now && earlier(at, PERCENTILE_SAMPLES);
    const all = before ? growth(whole, before, now) : 0;
    return all ? growth(part, before, now) / all : null;
  };
}

function percentiles(name) {
  return PERCENTILES.map((wanted) => [`p${wanted}`, (at) => {
    const now = samples[at];
    const before = now && earlier(at, PERCENTILE_SAMPLES);
    return before ? quantile(now.buckets.get(name) ?? [], before.buckets.get(name) ?? [], wanted / 100) : null;
  }]);
}

// As Prometheus' histogram_quantile: evenly spread within a bucket.
function quantile(now, before, wanted) {
  const restarted = now.length && before.length && now[now.length - 1][1] < before[before.length - 1][1];
  const counts = now.map(([bound, total], i) => [bound, total - (restarted ? 0 : before[i]?.[1] ?? 0)]);
  const all = counts.length ? counts[counts.length - 1][1] : 0;
  if (!all) return null;
  const rank = wanted * all;
  const at = counts.findIndex(([, total]) => total >= rank);
  const [lower, below] = at ? counts[at - 1] : [0, 0];
  const [upper, total] = counts[at];
  return upper === Infinity ? lower : lower + (upper - lower) * ((rank - below) / Math.max(total - below, 1));
}

// ---- drawing ----

function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

// Places of the points, one list for each unbroken run.
function runs(points, top) {
  const width = Math.max(points.length, MIN_SAMPLES) - 1;
  const found = [];
  points.forEach((value, i) => {
    if (value === null) return;
    const x = WIDTH - (points.length - 1 - i) * (WIDTH / width);
    const y = HEIGHT - Math.min(value / top, 1) * (HEIGHT - 4) - 1;
    if (i === 0 || points[i - 1] === null) found.push([]);
    found[found.length - 1].push(`${x.toFixed(1)} ${y.toFixed(1)}`);
  });
  return found;
}

const outline = (found) => found.map((run) => `M${run.join("L")}`).join("");
const area = (found) => found.map((run) => `M${run[0].split(" ")[0]} ${HEIGHT}L${run.join("L")}L${run[run.length - 1].split(" ")[0]} ${HEIGHT}Z`).join("");

// The next 1, 2 or 5 times a power of ten.
function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((m) => m * power).find((m) => m >= value * 0.9999);
}

// Where the pointer is: seconds before now; null = nowhere. Every card then shows the values of that time.
let pointed = null;

function picture(series, highest, title) {
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  for (const y of [1, HEIGHT / 2, HEIGHT - 1]) svg.append(shape("line", { x1: 0, x2: WIDTH, y1: y, y2: y, class: "grid" }));
  const places = series.map(({ points }) => runs(points, highest));
  if (series.length < 3) places.forEach((found, i) => svg.append(shape("path", { d: area(found), class: `area ${COLOURS[i]}` })));
  places.forEach((found, i) => svg.append(shape("path", { d: outline(found), class: `line ${COLOURS[i]}` })));
  const shown = Math.max(samples.length, MIN_SAMPLES) - 1;
  if (pointed !== null) {
    const x = WIDTH - pointed * (WIDTH / shown);
    svg.append(shape("line", { x1: x, x2: x, y1: 0, y2: HEIGHT, class: "cross" }));
  }
  svg.setAttribute("aria-label", title);
  return svg;
}

function legendOf(series, format) {
  const at = samples.length - 1 - (pointed ?? 0);
  const legend = element("div", { className: "legend" });
  const spoken = [];
  series.forEach(({ name, points }, i) => {
    const value = points[at] ?? null;
    const text = value === null ? "–" : format(value);
    const label = name && /^p\d/.test(name) ? name : name && word(name);
    spoken.push(`${label} ${text}`.trim());
    const several = series.length > 2 ? " several" : "";
    const item = element("span", { className: COLOURS[i] + several });
    if (label) item.append(element("i"));
    item.append(element("b", { textContent: text }), label ? ` ${label}` : "");
    legend.append(item);
  });
  return { legend, spoken: spoken.join(", ") };
}

function card({ title, format, lines, top }) {
  const series = lines.map(([name, at]) => ({ name, points: samples.map((_, i) => at(i)) }));
  const values = series.flatMap(({ points }) => points.filter((p) => p !== null));
  const highest = top ?? roundUp(Math.max(0, ...values));
  const { legend, spoken } = legendOf(series, format);
  const plot = element("div", { className: "plot" }, picture(series, highest, `${word(title)}: ${spoken}`));
  if (values.length) plot.append(element("span", { className: "scale", textContent: format(highest) }));
  else plot.append(element("span", { className: "nothing", textContent: word(samples.length < 3 ? "waitingData" : "none") }));
  const span = Math.max(samples.length, MIN_SAMPLES);
  const began = span >= 2 * MIN_SAMPLES ? `${Math.floor(span / 60)}${word("minutesAgo")}` : `${span}${word("secondsAgo")}`;
  const axis = element("div", { className: "axis", ariaHidden: "true" }, element("span", { textContent: began }), element("span", { textContent: word("now") }));
  return element("section", { className: "card", id: `card-${title}` }, element("h3", { textContent: word(title) }), legend, plot, axis);
}

function draw() {
  document.querySelector("#cards-load").replaceChildren(...LOAD.map(card));
  document.querySelector("#cards-latency").replaceChildren(...LATENCY.map(card));
  const lost = samples.length > 0 && samples[samples.length - 1] === null;
  const note = document.querySelector("#note");
  const text = word(lost ? "unreachable" : "window");
  if (note.textContent !== text) note.textContent = text; // said aloud when it changes, not every second
  note.classList.toggle("lost", lost);
  document.querySelector("#status").className = `dot ${lost ? "gone" : "ready"}`;
}

function point(event) {
  const plot = event.target.closest?.(".plot");
  const before = pointed;
  if (!plot) pointed = null;
  else {
    const { left, width } = plot.getBoundingClientRect();
    const shown = Math.max(samples.length, MIN_SAMPLES) - 1;
    pointed = Math.min(Math.max(Math.round((1 - (event.clientX - left) / width) * shown), 0), shown);
  }
  if (pointed !== before) draw();
}

async function sample() {
  let found = null;
  try {
    const response = await fetch("/metrics", { cache: "no-store" });
    const text = response.ok ? await response.text() : "";
    found = text ? parse(text) : null;
    const name = text.match(/^vllm:num_requests_running\{.*model_name="([^"]*)"/m);
    if (name) document.querySelector("#model-name").textContent = name[1];
  } catch {
    // the server is away; the line breaks off and goes on when it is back
  }
  samples.push(found);
  if (samples.length > NUM_SAMPLES) samples.shift();
  if (!document.hidden) draw();
}

async function run() {
  for (;;) {
    const began = performance.now();
    await sample();
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, EVERY_MS - (performance.now() - began))));
  }
}

drawIcons();
translate(draw);
document.addEventListener("pointermove", point);
document.addEventListener("pointerleave", point);
run();
