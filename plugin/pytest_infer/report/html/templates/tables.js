"use strict";
/* Tables: sorted by a column, filtered by a text, copied as Markdown. What they need is made when a table is first shown. */
const { tableRows, download, feedback } = (() => {
  const FEW = 3, MANY = 8;

  // figures and texts of cells

  /* What is shown of a cell, without what is for screen readers only and without our own buttons. */
  function shown(cell) {
    const copy = cell.cloneNode(true);
    copy.querySelectorAll(".hidden, .why, button, .permalink").forEach((one) => one.remove());
    return copy.textContent.trim().replace(/\s+/g, " ");
  }
  /* The first number of a text; null without one. */
  function number(text) {
    const found = text.replace(/−/g, "-").replace(/(\d),(?=\d{3})/g, "$1").match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
    return found ? Number(found[0]) : null;
  }
  function key(cell, numeric) {
    if (cell.dataset.sort !== undefined) return Number(cell.dataset.sort);
    const text = shown(cell);
    return numeric ? number(text) : text || null;
  }
  /* The rows of a table as texts, its heads first. */
  const tableRows = (table) => [...table.rows].filter((row) => !row.hidden).map((row) => [...row.cells].map(shown));

  // what a button did

  function feedback(button, text) {
    const before = button.dataset.name || button.textContent;
    button.dataset.name = before;
    button.textContent = text;
    setTimeout(() => { button.textContent = before; }, 1500);
  }
  function download(name, blob) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  async function copy(text, button) {
    try {
      await navigator.clipboard.writeText(text);
    } catch { /* where a page from disk may not: the older way */
      const area = document.createElement("textarea");
      area.value = text;
      area.className = "hidden";
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    feedback(button, "copied");
  }

  function markdown(table) {
    const rows = tableRows(table).map((row) => row.map((text) => text.replace(/[\\|`<>[\]*_]/g, "\\$&")));
    const numeric = [...table.tHead.rows[0].cells].map((cell) => cell.classList.contains("n"));
    const line = (cells) => `| ${cells.join(" | ")} |`;
    return [line(rows[0]), line(numeric.map((n) => (n ? "---:" : "---"))), ...rows.slice(1).map(line)].join("\n") + "\n";
  }

  // one table

  function sortable(table, body) {
    const heads = [...table.tHead.rows[0].cells];
    const original = [...body.rows];
    heads.forEach((head, column) => {
      const name = shown(head);
      if (!name || original.every((row) => !row.cells[column] || (!shown(row.cells[column]) && row.cells[column].dataset.sort === undefined))) return;
      const numeric = head.classList.contains("n");
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.setAttribute("aria-label", `Sort by ${name}`);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        /* Figures begin with the largest, texts with a; the third time all stands as it stood. */
        const [first, second] = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
        const next = now === null ? first : now === first ? second : null;
        heads.forEach((one) => one.removeAttribute("aria-sort"));
        if (next) head.setAttribute("aria-sort", next);
        const way = next === "descending" ? -1 : 1;
        const keyed = original.map((row) => [key(row.cells[column], numeric), row]);
        const compared = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
        if (next) keyed.sort(([a], [b]) => (a === null ? (b === null ? 0 : 1) : b === null ? -1 : way * compared(a, b)));
        table.classList.toggle("sorted", next !== null);
        body.append(...keyed.map(([, row]) => row));
      });
      head.append(button);
    });
  }

  function filtered(table, body, bar) {
    const made = document.createElement("input");
    made.type = "search";
    made.placeholder = "filter rows";
    made.setAttribute("aria-label", `Filter ${table.caption.textContent}`);
    const told = document.createElement("span");
    told.setAttribute("role", "status");
    made.addEventListener("input", () => {
      const words = made.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      for (const row of body.rows) {
        const text = [...row.cells].map(shown).join(" ").toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        left += !row.hidden;
      }
      table.classList.toggle("filtered", words.length > 0);
      told.textContent = words.length ? `${left} of ${body.rows.length}` : "";
    });
    bar.append(made, told);
  }

  function equip(table) {
    if (table.dataset.equipped || !table.tHead) return;
    table.dataset.equipped = "yes";
    const body = table.tBodies[0];
    const bar = document.createElement("div");
    bar.className = "tools table-tools";
    if (body.rows.length >= FEW) sortable(table, body);
    if (body.rows.length >= MANY) filtered(table, body, bar);
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "copy";
    button.setAttribute("aria-label", `Copy ${table.caption.textContent} as Markdown`);
    button.title = "as Markdown";
    button.addEventListener("click", () => copy(markdown(table), button));
    bar.append(button);
    table.closest(".scroll").before(bar);
  }
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      equip(entry.target);
    }
  }, { rootMargin: "300px" });
  document.querySelectorAll("table").forEach((table) => near.observe(table));

  return { tableRows, download, feedback };
})();
