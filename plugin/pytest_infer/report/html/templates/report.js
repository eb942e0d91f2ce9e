"use strict";
/* Draws the charts from the embedded data when they come into view, and makes the page pleasant to use. */
(() => {
  const root = document.documentElement;
  const specs = JSON.parse(document.getElementById("data").textContent);
  const drawn = new Map();
  const chosen = {};
  root.classList.add("js");

  const charts = [...document.querySelectorAll("[data-chart]")];
  const keyOf = (node) => node.dataset.group || node.dataset.chart;

  // what is chosen: charts of a group share it, and one may lack what another has

  const offered = {};
  for (const node of charts) {
    const names = (specs[node.dataset.chart].choices || []).map((one) => one.name);
    offered[keyOf(node)] = [...new Set([...(offered[keyOf(node)] || []), ...names])];
  }
  for (const key in offered) [chosen[key]] = offered[key];
  const choiceOf = (node) => (specs[node.dataset.chart].choices || []).find((one) => one.name === chosen[keyOf(node)]);

  // drawing

  const height = (spec, node) => (chartHeights[spec.kind] ? chartHeights[spec.kind](spec, node) : node.clientHeight);

  function now(node) {
    if (!drawn.has(node)) draw(node);
    drawn.get(node).getZr().flush(); /* drawn in the next frame otherwise */
    return { choice: choiceOf(node), phase: chosen[`${keyOf(node)}-phase`] || specs[node.dataset.chart].phase };
  }

  function draw(node) {
    const spec = specs[node.dataset.chart];
    spec.key = node.dataset.chart;
    if (drawn.has(node)) drawn.get(node).dispose();
    node.style.height = `${height(spec, node)}px`;
    const chart = echarts.init(node, null, { renderer: "canvas", devicePixelRatio: Math.max(2, window.devicePixelRatio || 1) });
    const key = keyOf(node);
    const choice = choiceOf(node);
    const lacks = spec.choices && !choice;
    chart.setOption(lacks ? chartNothing(`no such figure of ${chosen[key]}`)
      : chartKinds[spec.kind](spec, node, choice, chosen[`${key}-phase`], chosen[`${key}-map`]));
    drawn.set(node, chart);
  }

  const redraw = (which = () => true) => [...drawn.keys()].filter(which).forEach(draw);
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
    }
  }, { rootMargin: "200px" });
  const fitted = new Map();
  const resized = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) {
      const known = fitted.get(target);
      fitted.set(target, contentRect.width);
      if (known !== undefined && Math.abs(known - contentRect.width) > 1 && contentRect.width && drawn.has(target)) draw(target);
    }
  });
  for (const node of charts) {
    seen.observe(node);
    resized.observe(node);
  }

  // choices

  function select(label, names, changed) {
    const made = document.createElement("label");
    const list = document.createElement("select");
    made.append(label, list);
    for (const [value, text] of names) list.append(new Option(text, value));
    list.addEventListener("change", () => changed(list.value));
    return made;
  }
  function tools(before) {
    const made = document.createElement("div");
    made.className = "tools";
    before.before(made);
    return made;
  }
  const grouped = new Set();
  for (const node of charts) {
    const spec = specs[node.dataset.chart];
    const group = node.dataset.group;
    if (!spec.choices || (group && grouped.has(group))) continue;
    const key = keyOf(node);
    grouped.add(key);
    const bar = tools(group ? node.closest(".charts") : node);
    const mine = (other) => keyOf(other) === key;
    if (offered[key].length > 1) {
      bar.append(select(spec.choose || "prompt", offered[key].map((one) => [one, one]), (value) => {
        chosen[key] = value;
        redraw(mine);
      }));
    }
    if (spec.kind === "heat") {
      const phases = [["decode", "generated"], ["prefill", "prompt"]];
      const list = select("tokens", phases, (value) => {
        chosen[`${key}-phase`] = value;
        redraw(mine);
      });
      list.querySelector("select").value = spec.phase;
      bar.append(list);
      if (spec.choices.some((one) => one.before)) {
        bar.append(select("map", [["", spec.sides[1]], ["difference", `${spec.sides[1]} less ${spec.sides[0]}`]], (value) => {
          chosen[`${key}-map`] = value;
          redraw(mine);
        }));
      }
    }
  }

  for (const node of charts) node.after(saveTools(node, specs[node.dataset.chart], () => now(node)));

  // folding: tables are open without script, and folded with it; a link opens what it leads into

  document.querySelectorAll("details.data").forEach((one) => one.removeAttribute("open"));
  function named(hash) {
    try { return decodeURIComponent(hash); } catch { return hash; /* a stray % is no escape */ }
  }
  function open() {
    const target = location.hash.length > 1 && document.getElementById(named(location.hash.slice(1)));
    for (let node = target; node; node = node.parentElement) {
      if (node.tagName === "DETAILS") node.open = true;
    }
    if (target) target.scrollIntoView();
  }
  window.addEventListener("hashchange", open);
  open();

  // what scrolls, either way, is reached by keyboard

  const scrolls = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const caption = target.querySelector("caption");
      if (target.scrollWidth > target.clientWidth + 1 || target.scrollHeight > target.clientHeight + 1) {
        target.tabIndex = 0;
        target.setAttribute("role", "group");
        target.setAttribute("aria-label", caption ? caption.textContent : "output");
      } else {
        target.removeAttribute("tabindex");
        target.removeAttribute("role");
        target.removeAttribute("aria-label");
      }
    }
  });
  document.querySelectorAll(".scroll, .output").forEach((one) => scrolls.observe(one));

  // where in the page one is

  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const passed = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((a, id) => (id === entry.target.id ? a.setAttribute("aria-current", "true") : a.removeAttribute("aria-current")));
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  document.querySelectorAll("main > section").forEach((section) => passed.observe(section));

  // theme: what is drawn wears it too

  document.addEventListener("theme", () => redraw());

  // paper: everything drawn, open, and light

  let folded = [], worn;
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details.prompt:not([open])")];
    folded.forEach((one) => { one.open = true; });
    worn = root.dataset.theme;
    root.dataset.theme = "light";
    charts.forEach(draw);
  });
  window.addEventListener("afterprint", () => {
    folded.forEach((one) => { one.open = false; });
    if (worn) root.dataset.theme = worn;
    else delete root.dataset.theme;
    redraw();
  });
})();
