"use strict";
/* A chart as a picture, and what it is drawn from as CSV. */
const { saveTools } = (() => {
  // what a chart is drawn from, as rows with a head; charts that are not here show all of it in the table below them

  const sources = {
    band(spec) {
      const sides = [spec, ...(spec.before ? [spec.before] : [])];
      const heads = sides.flatMap((side) => ["median", "least", "most"].map((what) => [side.name, what, spec.unit].filter(Boolean).join(" ")));
      const places = new Set(sides.flatMap((side) => side.median.map((_, at) => side.x.start + at * side.x.step)));
      const rows = [...places].sort((one, other) => one - other).map((x) => [x, ...sides.flatMap((side) => {
        const at = (x - side.x.start) / side.x.step;
        return [side.median[at], side.low[at], side.high[at]];
      })]);
      return [[spec.x.name, ...heads], ...rows];
    },
    histogram: (spec) => [
      [`from ${spec.unit}`, `to ${spec.unit}`, "gaps", ...(spec.before ? [`gaps, ${spec.names[0]}`] : [])],
      ...spec.counts.map((n, at) => [spec.edges[at], spec.edges[at + 1], n, ...(spec.before ? [spec.before[at]] : [])]),
    ],
    curve: (spec, choice) => {
      const of = choice || spec;
      return [[of.time, spec.unit], ...of.at.map((at, index) => [at, of.values[index]])];
    },
    lines: (spec) => {
      const ends = spec.series.some((one) => one.low) ? ["low", "high"] : [];
      return [
        ["series", [spec.x.name, spec.x.unit].filter(Boolean).join(" "), [spec.y.name, spec.y.unit].filter(Boolean).join(" "), ...ends],
        ...spec.series.flatMap((one) => (one.at || spec.x.values).map((x, at) => [
          one.name, x, one.values[at], ...ends.map((end) => one[end] && one[end][at]),
        ])),
      ];
    },
    trend: (spec, choice) => [["run", "of", choice.unit], ...spec.runs.map((run, at) => [run.name, run.says, choice.values[at]])],
    heat(spec, choice, phase) {
      const changes = choice.before && shareChanges(choice, phase);
      return [
        ["layer", "expert", "selections", ...(changes ? [`selections, ${spec.sides[0]}`, "change of share, points"] : [])],
        ...choice[phase].flatMap((row, layer) => row.map((n, expert) => [
          spec.layers[layer].trim(), expert, n, ...(changes ? [choice.before[phase][layer][expert], changes[layer][expert]] : []),
        ])),
      ];
    },
  };

  /* As the command writes it: a text that a spreadsheet would take for a formula gets an apostrophe. */
  function cell(value) {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const safe = value.replace(/(^|;)(?="*[=+\-@＝＋－＠])/g, (found, before) => (/^[-+−]?[\d.,]+$/.test(value) ? found : `${before}'`));
    return /[",\n\r]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
  }
  function csv(node, spec, choice, phase) {
    const rows = sources[spec.kind] && (choice || !spec.choices) ? sources[spec.kind](spec, choice, phase) : tableRows(node.closest(".chart").querySelector("table"));
    return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
  }

  /* The drawing below its title, on the page's background. */
  function picture(node, spec, choice) {
    const drawn = [...node.querySelectorAll("canvas")];
    const scale = drawn[0].width / node.clientWidth;
    const made = document.createElement("canvas");
    const [margin, head] = [14 * scale, 40 * scale];
    made.width = drawn[0].width + 2 * margin;
    made.height = drawn[0].height + head + margin;
    const pen = made.getContext("2d");
    const style = getComputedStyle(document.body);
    pen.fillStyle = style.backgroundColor;
    pen.fillRect(0, 0, made.width, made.height);
    pen.fillStyle = style.color;
    pen.font = `600 ${15 * scale}px ${style.fontFamily}`;
    pen.fillText([spec.title, spec.choices && spec.choices.length > 1 && choice && choice.name].filter(Boolean).join(": "), margin, 25 * scale, made.width - 2 * margin);
    drawn.forEach((one) => pen.drawImage(one, margin, head));
    return new Promise((done) => made.toBlob(done, "image/png"));
  }

  /* The buttons of a chart; `now` tells what is chosen of it, and draws it if it is not yet. */
  function saveTools(node, spec, now) {
    const bar = document.createElement("div");
    bar.className = "tools save-tools";
    const button = (text, told, made) => {
      const one = document.createElement("button");
      one.type = "button";
      one.textContent = text;
      one.setAttribute("aria-label", `Save ${spec.title} as ${told}`);
      one.addEventListener("click", async () => {
        const { choice, phase } = now();
        download(`${node.dataset.chart}.${text.toLowerCase()}`, await made(choice, phase));
        feedback(one, "saved");
      });
      bar.append(one);
    };
    button("PNG", "PNG", (choice) => picture(node, spec, choice));
    button("CSV", "CSV", (choice, phase) => new Blob([csv(node, spec, choice, phase)], { type: "text/csv" }));
    return bar;
  }

  return { saveTools };
})();
