// Keeps a study page up to date: asks for what has changed, puts it in place, and draws the charts.
"use strict";

const root = document.getElementById("study");
const base = root.dataset.base;
const connection = document.getElementById("connection");
let version = root.dataset.version;
let drawn = "";
let plotly = null;
const shown = new Map();

function loadPlotly() {
  plotly ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "/assets/plotly.js";
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => reject(new Error("the charting script did not load"));
    document.head.append(script);
  });
  return plotly;
}

const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.clientWidth && target.clientWidth !== target.drawnWidth) {
      target.drawnWidth = target.clientWidth;
      window.Plotly.Plots.resize(target);
    }
  }
});

const dark = matchMedia("(prefers-color-scheme: dark)");

// A part of a figure with every colour replaced; names and numbers are left alone.
function recoloured(value, colours, key = "") {
  if (typeof value === "string") return /color$/i.test(key) ? colours[value] ?? value : value;
  if (Array.isArray(value)) return value.map((item) => recoloured(item, colours, key));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, recoloured(v, colours, k)]));
}

// As drawn, in the page's font, on the page's card, in its light or dark colours.
function dressed(spec) {
  const { data, layout } = recoloured({ data: spec.data, layout: spec.layout }, dark.matches ? spec.layout.meta.dark : {});
  const own = { autosize: true, height: undefined, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
  const family = getComputedStyle(document.body).fontFamily;
  return [data, { ...layout, ...own, font: { ...layout.font, family } }];
}

async function draw(state) {
  if (state === drawn) return;
  drawn = state;
  await Promise.all([...document.querySelectorAll("[data-figure]")].map(drawOne));
}

async function drawOne(figure) {
  const place = figure.querySelector(".plot");
  try {
    const answer = await fetch(`${base}/figures/${figure.dataset.figure}.json`);
    const spec = await answer.json();
    if (!answer.ok) throw new Error(spec.error);
    table(figure.querySelector("[data-table]"), spec.table);
    const Plotly = await loadPlotly();
    place.classList.remove("failed");
    place.style.height = `${spec.layout.height}px`;
    await Plotly.react(place, ...dressed(spec), { displayModeBar: false });
    resized.observe(place);
  } catch (error) {
    place.classList.add("failed");
    place.style.height = "";
    place.textContent = `This chart cannot be drawn: ${error.message}`;
  }
}

function table(place, rows) {
  const made = document.createElement("table");
  rows.forEach((cells, i) => {
    const row = (i ? made.tBodies[0] ?? made.createTBody() : made.createTHead()).insertRow();
    cells.forEach((cell, j) => {
      const box = document.createElement(i && j ? "td" : "th");
      if (!i) box.scope = "col"; else if (!j) box.scope = "row";
      if (i && typeof cell === "number") box.className = "num";
      box.textContent = cell === null ? "–" : typeof cell === "number" ? cell.toLocaleString("en", { maximumSignificantDigits: 6 }) : cell;
      row.append(box);
    });
  });
  place.replaceChildren(made);
}

function replace(sections) {
  for (const place of document.querySelectorAll("[data-section]")) {
    const html = sections[place.dataset.section];
    if (html === undefined || shown.get(place) === html) continue;
    const boxes = [...place.querySelectorAll(".scroll")].map((box) => [box.scrollLeft, box.scrollTop]);
    const focused = [...place.querySelectorAll("[tabindex], a")].indexOf(document.activeElement);
    place.innerHTML = html; // written by the server's templates, which escape every name
    shown.set(place, html);
    place.querySelectorAll(".scroll").forEach((box, i) => {
      if (boxes[i]) [box.scrollLeft, box.scrollTop] = boxes[i];
    });
    if (focused >= 0) place.querySelectorAll("[tabindex], a")[focused]?.focus({ preventScroll: true });
  }
}

async function update() {
  let pause = 1000;
  try {
    const answer = await fetch(`${base}/live.json`, { headers: { "If-None-Match": `"${version}"` }, cache: "no-store" });
    if (answer.status === 200) {
      const news = await answer.json();
      version = news.version;
      document.title = news.title;
      replace(news.sections);
      draw(news.figures);
      if (news.state === "done") pause = 5000;
    } else if (answer.status !== 304) {
      throw new Error(`the server answered ${answer.status}`);
    }
    connection.hidden = true;
  } catch (error) {
    connection.textContent = `Not up to date: ${error.message}. Trying again.`;
    connection.hidden = false;
    pause = 3000;
  }
  if (document.hidden) {
    document.addEventListener("visibilitychange", update, { once: true });
  } else {
    setTimeout(update, pause);
  }
}

loadPlotly().catch(() => {}); // each chart says so
draw(root.dataset.figures);
setTimeout(update, 1000);
dark.addEventListener("change", () => {
  const state = drawn;
  drawn = "";
  draw(state);
});
