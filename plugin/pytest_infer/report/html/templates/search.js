"use strict";
/* Permalinks at headings, and a search over headings and the first cells of all tables. */
(() => {
  // permalinks: each heading of a part that has an anchor leads to itself

  for (const heading of document.querySelectorAll("main h2, main h3, main h4, main details[id] > summary")) {
    const part = heading.closest("[id]:not([id$='-title'])");
    if (!part || part.id === "main" || part.querySelector("h2, summary, h3, h4") !== heading && part !== heading) continue;
    const link = document.createElement("a");
    link.className = "permalink";
    link.href = `#${encodeURIComponent(part.id)}`;
    link.textContent = "#";
    link.setAttribute("aria-label", `Link to ${heading.textContent.trim()}`);
    if (heading.tagName === "SUMMARY") heading.after(link); /* a link within it would not be reached */
    else heading.append(" ", link);
  }

  // search

  const MOST = 30;
  const button = document.getElementById("search");
  const dialog = document.getElementById("found");
  if (!button || !dialog.showModal) return;
  const field = dialog.querySelector("input");
  const list = dialog.querySelector("ul");
  const status = dialog.querySelector("[role=status]");
  let index = null;

  function text(node) {
    const copy = node.cloneNode(true);
    copy.querySelectorAll(".permalink, button, .hidden, .why").forEach((one) => one.remove());
    return copy.textContent.trim().replace(/\s+/g, " ");
  }
  function where(node) {
    const section = node.closest("section");
    const prompt = node.closest("details.prompt");
    const caption = node.tagName === "TR" && node.closest("table").caption;
    return [section && text(section.querySelector("h2")), prompt && text(prompt.querySelector("h3")), caption && caption.textContent].filter(Boolean).join(" · ");
  }
  function build() {
    const headings = document.querySelectorAll("main h2, main h3, main h4, main summary");
    const rows = document.querySelectorAll("main tbody tr");
    return [...headings, ...rows].map((node) => {
      const said = text(node.tagName === "TR" ? node.cells[0] : node);
      return { node, said, at: where(node), low: `${said} ${where(node)}`.toLowerCase() };
    }).filter((one) => one.said && one.said !== "Table");
  }
  function show(node) {
    dialog.close();
    for (let one = node; one; one = one.parentElement) {
      if (one.tagName === "DETAILS") one.open = true;
    }
    const named = node.closest("[id]");
    if (named && named.id !== "main") history.replaceState(null, "", `#${encodeURIComponent(named.id)}`);
    node.scrollIntoView({ block: "center" });
    node.classList.add("found");
    setTimeout(() => node.classList.remove("found"), 2500);
    const focusable = node.querySelector("a, button") || node.closest("summary") || node;
    focusable.focus({ preventScroll: true });
  }
  function look() {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    index = index || build();
    const hits = words.length ? index.filter((one) => words.every((word) => one.low.includes(word))) : [];
    hits.sort((a, b) => words.every((word) => b.said.toLowerCase().includes(word)) - words.every((word) => a.said.toLowerCase().includes(word)));
    list.replaceChildren(...hits.slice(0, MOST).map((one) => {
      const item = document.createElement("li");
      const hit = document.createElement("button");
      hit.type = "button";
      const place = document.createElement("span");
      place.className = "unit";
      place.textContent = one.at;
      hit.append(one.said, " ", place);
      hit.addEventListener("click", () => show(one.node));
      item.append(hit);
      return item;
    }));
    status.textContent = !words.length ? "" : hits.length > MOST ? `the first ${MOST} of ${hits.length}` : `${hits.length} found`;
  }
  button.hidden = false;
  button.addEventListener("click", () => { dialog.showModal(); field.select(); look(); });
  document.addEventListener("keydown", (press) => {
    if (press.key !== "/" || press.ctrlKey || press.metaKey || press.target.closest("input, select, textarea, dialog")) return;
    press.preventDefault();
    button.click();
  });
  field.addEventListener("input", look);
  field.addEventListener("keydown", (press) => {
    if (press.key === "Escape") dialog.close(); /* browsers empty the field first */
    if (press.key === "Enter" && list.firstElementChild) { press.preventDefault(); list.firstElementChild.firstElementChild.click(); }
  });
  dialog.addEventListener("click", (press) => { if (press.target === dialog) dialog.close(); });
})();
