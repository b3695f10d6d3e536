// What a page can't do without a script: charts, keys, and looking again when a run's files change. It writes no HTML
// but what this page's own server sent.
"use strict";

const LOOK_MS = 4000;
const AGAIN_MS = 500; // until a part that is being made is asked for again
const seen = new WeakMap(); // part of the page -> its HTML as the server sent it
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw(box) {
  const figure = JSON.parse(box.dataset.figure);
  if (!figure || !window.Plotly) return;
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line") };
  const layout = { ...figure.layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--ink"), family: "system-ui, sans-serif", size: 13 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--dim"), activecolor: css("--link") },
    hoverlabel: { bgcolor: css("--panel"), font: { color: css("--ink") } } };
  for (const key of Object.keys(layout)) if (/^[xy]axis/.test(key)) layout[key] = { ...axis, ...layout[key] };
  const save = (format) => ({ name: `Save as ${format.toUpperCase()}`, title: `Save as ${format.toUpperCase()}`,
    icon: format === "png" ? Plotly.Icons.camera : Plotly.Icons.disk,
    click: (plot) => Plotly.downloadImage(plot, { format, filename: figure.name, width: 1280, height: layout.height * 1.3 }) });
  Plotly.react(box, figure.data, layout, { responsive: true, displaylogo: false,
    modeBarButtons: [[save("png"), save("svg")], ["zoom2d", "pan2d", "resetScale2d"]] });
  if (box.dataset.opens && !box.dataset.listens) {
    box.dataset.listens = "1";
    box.on("plotly_click", (event) => location.assign(`${box.dataset.opens}&n=${Number(event.points[0].x)}`));
  }
}

function drawAll() { document.querySelectorAll("[data-figure]").forEach(draw); }

async function text(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${answer.status}`);
  return answer.text();
}

async function fill(box) {
  try { box.innerHTML = await text(box.dataset.load); } catch (error) { box.textContent = `can't be read: ${error.message}`; }
  if (box.querySelector("[data-again]")) setTimeout(fill, AGAIN_MS, box);
}

async function load() { for (const box of document.querySelectorAll("[data-load]")) await fill(box); }

// The next part of a long answer, once its place comes near.
const near = new IntersectionObserver((seenNow) => {
  for (const one of seenNow) if (one.isIntersecting) {
    near.unobserve(one.target);
    more(one.target);
  }
}, { rootMargin: "600px" });

async function more(place) {
  try {
    const fresh = new DOMParser().parseFromString(await text(place.dataset.more), "text/html");
    const next = [...fresh.body.childNodes];
    place.replaceWith(...next);
    next.filter((one) => one.dataset?.more).forEach((one) => near.observe(one));
  } catch (error) { place.textContent = `can't be read: ${error.message}`; }
}

function openIn(part) { return new Set([...part.querySelectorAll("details[open][id]")].map((one) => one.id)); }

// Fetch this very page again and replace the parts that differ; what a person opened stays open.
async function again() {
  const fresh = new DOMParser().parseFromString(await text(location.href), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(part.id);
    if (!other || other.outerHTML === seen.get(part)) continue;
    const was = other.outerHTML, opened = openIn(part);
    if (part.matches("[data-figure]")) { part.dataset.figure = other.dataset.figure; draw(part); }
    else {
      part.innerHTML = other.innerHTML;
      opened.forEach((id) => { const one = document.getElementById(id); if (one) one.open = true; });
    }
    seen.set(part, was);
  }
  await load();
}

// The step that an address names behind its #, which may be closed.
function openNamed() {
  const closed = document.querySelector(":target > details:not([open])");
  if (closed) { closed.open = true; closed.parentElement.scrollIntoView(); }
}

function watch() {
  const url = document.body.dataset.pulse;
  if (!url) return;
  let last = null;
  const state = document.getElementById("live");
  async function look() {
    if (document.visibilityState === "visible") {
      try {
        const now = await text(url);
        if (last !== null && now !== last) await again();
        last = now;
        state.textContent = "live";
      } catch (error) { state.textContent = "no answer: is `lightningrl ui` running?"; }
    }
    setTimeout(look, LOOK_MS);
  }
  look();
}

function rows() { return [...document.querySelectorAll("table a.open, .step > details > summary")]; }

// The token that was clicked, or is so many further; what is known of it stands below.
function pick(token) {
  const told = document.getElementById("told");
  if (!token || !told) return;
  document.querySelector(".tokens .here")?.classList.remove("here");
  token.classList.add("here");
  token.scrollIntoView({ block: "nearest" });
  told.hidden = false;
  told.textContent = `${JSON.stringify(token.textContent)} · ${token.title}`;
}

function further(by) {
  const all = [...document.querySelectorAll(".tokens span[title]")];
  const at = all.findIndex((one) => one.classList.contains("here"));
  pick(all[at < 0 ? 0 : Math.min(all.length - 1, Math.max(0, at + by))]);
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const go = (selector) => { const one = document.querySelector(selector); if (one) one.click(); };
  const move = (by) => {
    const all = rows(), at = all.indexOf(document.activeElement);
    const next = all[Math.min(all.length - 1, Math.max(0, at + by))];
    if (next) next.focus();
  };
  const help = document.getElementById("keys");
  const acts = { h: () => further(-1), l: () => further(1), "/": () => document.querySelector("input[type=search]")?.focus(), j: () => move(1), k: () => move(-1),
    u: () => go("a[rel=up]"), "[": () => go("a[rel=prev]"), "]": () => go("a[rel=next]"), "?": () => help.showModal(),
    r: () => location.assign("/") };
  if (acts[event.key]) { event.preventDefault(); acts[event.key](); }
}

document.addEventListener("keydown", keys);
window.addEventListener("hashchange", openNamed);
window.addEventListener("load", openNamed); // before that the browser has not looked for it
document.addEventListener("click", (event) => pick(event.target.closest?.(".tokens span[title]")));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
document.querySelectorAll("[data-live]").forEach((part) => { seen.set(part, part.outerHTML); });
document.querySelectorAll("[data-more]").forEach((one) => near.observe(one));
drawAll();
load();
watch();
