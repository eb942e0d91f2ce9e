"use strict";
/* The kinds of charts: each makes an option of ECharts from a chart's data, in the page's colours. All text is drawn as
   text: tooltips are part of the canvas, never HTML. */
const { kinds: chartKinds, heights: chartHeights, nothing: chartNothing, shareChanges } = (() => {
  const root = document.documentElement;

  // figures

  const figure = (value, digits = 4) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "—";
    if (Number.isInteger(value)) return value.toLocaleString("en");
    if (Math.abs(value) < 1e-4) return Number(value.toPrecision(Math.min(digits, 3))).toExponential();
    return Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });
  };
  const signed = (value, digits) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${figure(Math.abs(value), digits)}`;
  /* A name in as many lines as it needs, broken at spaces and after signs where it can be: none is cut. */
  const wrapped = (text, most) => {
    const lines = [""];
    for (const word of text.match(/[^\s\-_/=.,:]*[\s\-_/=.,:]?/g) || []) {
      for (let rest = [...word]; rest.length; rest = rest.slice(most)) {
        const part = rest.slice(0, most).join("");
        if (lines[lines.length - 1] && [...(lines[lines.length - 1] + part).trimEnd()].length > most) lines.push("");
        lines[lines.length - 1] += part;
      }
    }
    return lines.map((line) => line.trimEnd()).join("\n");
  };
  const lineCount = (text) => text.split("\n").length;
  /* What a few figures far beyond all others would take of an axis: then it ends before them, and they are marked there. */
  const fence = (values, { floor = 1, both = false } = {}) => {
    const known = values.filter((value) => value !== null && value !== undefined).sort((a, b) => a - b);
    if (known.length < 8) return {};
    const few = Math.ceil(0.05 * known.length);
    const [least, low, high, most] = [known[0], known[few], known[known.length - 1 - few], known[known.length - 1]];
    const span = Math.max(high - low, floor * Math.abs(high));
    return {
      ...(most > high + 3 * span ? { max: Number((high + span).toPrecision(2)) } : {}),
      ...(both && least < low - 3 * span ? { min: Number((low - span).toPrecision(2)) } : {}),
    };
  };
  /* The figures beyond the end of an axis, as marks at its edge that say what they are. */
  const beyond = (points, edge, unit) => {
    const out = points.filter(([, value]) => value !== null && (value > edge.max || value < edge.min));
    if (!out.length) return [];
    return [{
      type: "scatter", name: "beyond the axis", symbol: "triangle", symbolSize: 8, clip: false, z: 5,
      itemStyle: { color: colour("warn") }, tooltip: { trigger: "item" },
      data: out.map(([x, value]) => ({ value: [x, value > edge.max ? edge.max : edge.min], told: value, symbolRotate: value > edge.max ? 0 : 180 })),
      label: {
        show: out.length <= 3, position: "left", color: colour("muted"), fontSize: 11,
        formatter: (mark) => `${figure(mark.data.told, 3)} ${unit}`,
      },
      labelLayout: { hideOverlap: true },
    }];
  };

  // colours

  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const palette = () => ["c1", "c2", "c3", "c4", "c5"].map(colour);
  const narrow = (node) => node.clientWidth < 520;

  const base = (spec) => ({
    animation: false,
    color: palette(),
    aria: { enabled: true, label: { enabled: true, description: `${spec.title}. ${spec.says}` } },
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: colour("ink"), fontSize: 12 },
    grid: { left: 14, right: 18, top: 34, bottom: 28, containLabel: true },
    legend: {
      top: 0, left: 0, itemWidth: 16, itemHeight: 9, itemGap: 16, icon: "roundRect",
      textStyle: { color: colour("ink"), fontSize: 12 }, inactiveColor: colour("line"),
    },
    tooltip: {
      renderMode: "richText", confine: true, backgroundColor: colour("bg"), borderColor: colour("line"),
      padding: [6, 10], textStyle: { color: colour("ink"), fontSize: 12, lineHeight: 17 },
    },
  });
  const axis = (name, more = {}) => ({
    name, nameLocation: "middle", nameGap: 26, nameTextStyle: { color: colour("muted"), fontSize: 12 },
    axisLine: { lineStyle: { color: colour("line") } }, axisTick: { show: false },
    axisLabel: { color: colour("muted"), fontSize: 11, hideOverlap: true, formatter: (value) => figure(value) },
    splitLine: { lineStyle: { color: colour("line"), width: 0.6 } },
    ...more,
  });
  /* The name of a vertical axis stands above it, where it needs no turning of heads. */
  const upright = (name, more = {}) => axis(name, {
    nameLocation: "end", nameGap: 10, nameTextStyle: { color: colour("muted"), fontSize: 12, align: "left", padding: [0, 0, 0, -24] }, ...more,
  });
  /* A logarithmic axis, marked by powers of ten. */
  const powers = {
    type: "log", axisLabel: { color: colour("muted"), fontSize: 11, hideOverlap: true, formatter: (value) => value.toExponential(0) },
  };
  const named = (names, more = {}) => ({
    type: "category", data: names, inverse: true, axisTick: { show: false },
    axisLine: { lineStyle: { color: colour("line") } },
    axisLabel: { color: colour("ink"), fontSize: 12, lineHeight: 14, interval: 0, formatter: (name) => wrapped(name, more.most || 22) },
  });
  /* So much room do names beside an axis take, in as many lines as they need. */
  const beside = (names) => 16 + 6.4 * Math.max(...names.flatMap((name) => name.split("\n")).map((line) => [...line].length));
  const longest = (node, wide = 24) => (narrow(node) ? 13 : wide);
  /* What stands in a chart that has nothing of the prompt chosen. */
  const nothing = (text) => ({ title: { text, left: "center", top: 12, textStyle: { color: colour("muted"), fontSize: 12, fontWeight: 400 } } });
  const lineMark = (marks, format) => ({
    silent: true, symbol: "none", lineStyle: { color: colour("muted"), type: "dashed", width: 1 },
    label: { color: colour("muted"), fontSize: 11, formatter: (mark) => format(mark) },
    data: marks,
  });

  /* Black or white, whichever is read better on a colour. */
  const readable = (fill) => {
    const light = [1, 3, 5].map((at) => parseInt(fill.slice(at, at + 2), 16) / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2] > 0.179 ? "#000000" : "#ffffff";
  };
  /* A box with what of the texts fits into it, the first that does. */
  const box = (rect, fill, texts) => {
    const fits = texts.find((text) => 6.1 * [...text].length + 8 <= rect.width);
    return {
      type: "rect", shape: { ...rect, width: rect.width - Math.min(1, rect.width / 8), height: rect.height - 1 }, style: { fill: colour(fill) },
      textContent: { style: { text: fits || "", fill: readable(colour(fill)), fontSize: 11 } }, textConfig: { position: "inside" },
    };
  };

  /* By how much an expert's share of its layer's selections changed between two runs, in percentage points. */
  const shareChanges = (choice, phase) => choice[phase].map((row, layer) => {
    const before = choice.before[phase][layer];
    const sums = [before, row].map((counts) => counts.reduce((sum, n) => sum + n, 0));
    return row.map((n, expert) => (sums[0] && sums[1] ? 100 * (n / sums[1] - before[expert] / sums[0]) : 0));
  });

  function difference(spec, node, choice, phase) {
    const changes = shareChanges(choice, phase);
    const cells = changes.flatMap((row, layer) => row.map((change, expert) => [expert, layer, change]));
    const most = Math.max(0.01, ...cells.map((cell) => Math.abs(cell[2])));
    const made = kinds.heat(spec, node, choice, phase);
    return {
      ...made,
      tooltip: {
        ...made.tooltip,
        formatter: (cell) => {
          const [expert, layer, change] = cell.value;
          const counts = [choice.before[phase][layer][expert], choice[phase][layer][expert]].map((n) => figure(n));
          return `${spec.layers[layer].trim()}E${expert}\n${signed(change, 3)} points of the layer's selections\n${counts.join(" → ")} selections`;
        },
      },
      visualMap: { ...made.visualMap, min: -most, max: most, text: [`${signed(most, 2)} points`, signed(-most, 2)] },
      series: [{
        ...made.series[0], data: cells,
        label: { ...made.series[0].label, formatter: (cell) => (Math.abs(cell.value[2]) < 0.05 ? "0" : signed(cell.value[2], 2)) },
      }],
    };
  }

  /* An upright line from the low to the high end of each point's interval. */
  const whiskers = (one, xs, tint) => ({
    type: "custom", name: one.name, silent: true, itemStyle: { color: tint }, encode: { x: 0, y: [1, 2] },
    data: xs.map((x, at) => [x, one.low[at], one.high[at]]).filter((row) => row[1] !== null && row[2] !== null),
    renderItem: (_, api) => {
      const [x, low] = api.coord([api.value(0), api.value(1)]), [, high] = api.coord([api.value(0), api.value(2)]);
      return { type: "line", shape: { x1: x, x2: x, y1: low, y2: high }, style: { stroke: tint, lineWidth: 1.5 } };
    },
  });

  // kinds of charts

  const kinds = {
    stacked(spec, node) {
      const most = longest(node);
      return {
        ...base(spec),
        tooltip: {
          ...base(spec).tooltip, trigger: "axis", axisPointer: { type: "shadow", shadowStyle: { color: colour("band") } },
          formatter: (rows) => [rows[0].name, ...rows.map((row) => `${row.seriesName}  ${figure(row.value)} ${spec.unit}`)].join("\n"),
        },
        grid: { ...base(spec).grid, bottom: 40 },
        xAxis: axis(spec.unit, { type: "value" }),
        yAxis: named(spec.names, { most }),
        series: spec.series.map((one) => ({
          type: "bar", stack: "all", name: one.name, data: one.values, barMaxWidth: 15,
          itemStyle: { color: colour({ tokenise: "c5", prefill: "c2", decode: "c1" }[one.name] || "c3") },
        })),
      };
    },

    band(spec) {
      const places = (of) => of.median.map((_, index) => of.x.start + index * of.x.step);
      const sides = [spec, ...(spec.before ? [spec.before] : [])];
      const edge = fence(sides.flatMap((side) => side.high));
      const tints = ["c1", "c2"], fills = ["band", "band2"], names = sides.length > 1 ? sides.map((side) => side.name) : ["median"];
      const series = sides.flatMap((side, number) => {
        const xs = places(side);
        const line = (values) => xs.map((x, index) => [x, values[index]]);
        const range = sides.length > 1 ? `least to most of ${names[number]}` : "least to most";
        return [
          { type: "line", stack: `band${number}`, data: line(side.low), symbol: "none", lineStyle: { opacity: 0 }, silent: true },
          {
            type: "line", stack: `band${number}`, name: range, symbol: "none", silent: true, lineStyle: { opacity: 0 },
            data: xs.map((x, index) => [x, side.high[index] - side.low[index]]),
            areaStyle: { color: colour(fills[number]), opacity: 1 }, itemStyle: { color: colour(fills[number]) },
          },
          {
            type: "line", name: names[number], data: line(side.median), symbol: "none", z: 3 - number,
            lineStyle: { width: 1.3, color: colour(tints[number]), type: number ? [5, 3] : "solid" }, itemStyle: { color: colour(tints[number]) },
          },
          ...(edge.max === undefined ? [] : beyond(line(side.high), edge, spec.unit)),
        ];
      });
      return {
        ...base(spec),
        legend: { ...base(spec).legend, data: sides.length > 1 ? names : ["median", "least to most"] },
        tooltip: {
          ...base(spec).tooltip, trigger: "axis", axisPointer: { lineStyle: { color: colour("muted") } },
          formatter: (rows) => {
            const x = rows[0].value[0];
            const last = spec.x.step > 1 ? `–${x + spec.x.step - 1}` : "";
            const told = sides.flatMap((side, number) => {
              const at = Math.round((x - side.x.start) / side.x.step);
              if (side.median[at] === undefined) return [];
              const figures = `${figure(side.median[at])} ${spec.unit} (${figure(side.low[at])} to ${figure(side.high[at])})`;
              return [`${names[number]}  ${figures}`];
            });
            return [`${spec.x.name} ${x}${last}`, ...told].join("\n");
          },
        },
        grid: { ...base(spec).grid, top: 34, bottom: 40 },
        xAxis: axis(spec.x.name, { type: "value", min: "dataMin", max: "dataMax", splitLine: { show: false } }),
        yAxis: axis("", { type: "value", min: 0, max: edge.max }),
        series,
      };
    },

    histogram(spec) {
      const middle = (index) => (spec.edges[index] + spec.edges[index + 1]) / 2;
      /* Of two sides, which have as many rounds only by chance, shares are drawn. */
      const heights = (counts) => {
        const sum = counts.reduce((total, n) => total + n, 0);
        return spec.before ? counts.map((n) => (sum ? (100 * n) / sum : 0)) : counts;
      };
      const drawn = heights(spec.counts);
      const told = (index) => [[spec.names && spec.names[1], spec.counts], [spec.names && spec.names[0], spec.before]]
        .filter(([, counts]) => counts).map(([name, counts]) => `${figure(counts[index])} gaps${name ? `, ${name}` : ""}`).join("\n");
      return {
        ...base(spec),
        tooltip: {
          ...base(spec).tooltip, trigger: "item",
          formatter: (row) => `${figure(spec.edges[row.dataIndex])}–${figure(spec.edges[row.dataIndex + 1])} ${spec.unit}\n${told(row.dataIndex)}`,
        },
        grid: { ...base(spec).grid, bottom: 40, top: 26 },
        xAxis: axis(spec.unit, { type: "value", min: spec.edges[0], max: spec.edges[spec.edges.length - 1], splitLine: { show: false },
          axisLabel: { color: colour("muted"), fontSize: 11, hideOverlap: true, showMinLabel: false, showMaxLabel: false, formatter: (value) => figure(value, 3) } }),
        yAxis: axis(spec.before ? "%" : "", { type: "value", minInterval: spec.before ? 0 : 1 }),
        ...(spec.before ? { legend: { ...base(spec).legend, data: [spec.names[1], spec.names[0]] } } : {}),
        series: [...(spec.before ? [{
          type: "line", name: spec.names[0], symbol: "none", silent: true, z: 5,
          lineStyle: { width: 1.3, type: [5, 3], color: colour("c2") }, itemStyle: { color: colour("c2") },
          data: heights(spec.before).flatMap((height, index) => [[spec.edges[index], height], [spec.edges[index + 1], height]]),
        }] : []), {
          name: spec.names && spec.names[1],
          type: "custom", itemStyle: { color: colour("c1") },
          data: drawn.map((height, index) => [middle(index), height, spec.edges[index], spec.edges[index + 1]]),
          encode: { x: 0, y: 1 },
          renderItem: (_, api) => {
            const [left, top] = api.coord([api.value(2), api.value(1)]);
            const [right, bottom] = api.coord([api.value(3), 0]);
            return { type: "rect", shape: { x: left + 0.5, y: top, width: Math.max(0.5, right - left - 1), height: bottom - top }, style: { fill: colour("c1") } };
          },
          markLine: lineMark(spec.marks.map((mark, index) => {
            /* Beside their lines, and the middle one only where there is room for it. */
            const range = spec.edges[spec.edges.length - 1] - spec.edges[0];
            const near = spec.marks.some((other) => other !== mark && Math.abs(other.at - mark.at) < range / 10);
            const last = spec.marks.length - 1;
            const show = index === 0 || index === last || !near;
            return {
              xAxis: mark.at, name: mark.name,
              label: { show, align: near ? (index ? "left" : "right") : "center", color: colour("muted"), fontSize: 11, formatter: mark.name },
            };
          }), (mark) => mark.name),
        }],
      };
    },

    curve(spec, node, choice) {
      const of = choice || spec;
      const phases = of.marks.filter((mark) => mark.at >= 0);
      return {
        ...base(spec),
        tooltip: {
          ...base(spec).tooltip, trigger: "axis", axisPointer: { lineStyle: { color: colour("muted") } },
          formatter: (rows) => `${figure(rows[0].value[0])} ${of.time}\n${figure(rows[0].value[1], 5)} ${spec.unit}`,
        },
        grid: { ...base(spec).grid, bottom: 40, top: 26 },
        xAxis: axis(of.time, { type: "value", min: 0, max: "dataMax", splitLine: { show: false } }),
        yAxis: axis("", { type: "value", scale: spec.unit !== "cores", min: spec.unit === "cores" ? 0 : undefined }),
        series: [{
          type: "line", symbol: "none", data: of.at.map((at, index) => [at, of.values[index]]),
          lineStyle: { width: 1.4, color: colour("c1") }, areaStyle: { color: colour("band"), opacity: 1, origin: "start" },
          markLine: lineMark(phases.map((mark, index) => ({
            xAxis: mark.at, name: mark.name, label: { align: index ? "right" : "left", padding: 0, color: colour("muted"), fontSize: 11, formatter: mark.name },
          })), (mark) => mark.name),
        }],
      };
    },

    lines(spec) {
      const look = { strong: { width: 2.2 }, points: { width: 0 }, thin: { width: 1, opacity: 0.75 }, dashed: { width: 1.2, type: "dashed" } };
      const tints = { strong: "c1", points: "c2", dashed: "muted", thin: "c5" };
      let next = 1;
      return {
        ...base(spec),
        tooltip: {
          ...base(spec).tooltip, trigger: "axis", axisPointer: { lineStyle: { color: colour("muted") } },
          formatter: (rows) => [`${spec.x.name}  ${figure(rows[0].value[0])} ${spec.x.unit}`,
            ...rows.filter((row) => row.seriesType === "line").map((row) => `${row.seriesName}  ${figure(row.value[1])} ${spec.y.unit}`)].join("\n"),
        },
        grid: { ...base(spec).grid, bottom: 40, top: 60 },
        xAxis: axis([spec.x.name, spec.x.unit].filter(Boolean).join(", "), { type: "value", max: "dataMax", splitLine: { show: false } }),
        yAxis: upright(`${spec.y.name}, ${spec.y.unit}`, { type: "value", max: spec.y.top, min: 0 }),
        series: spec.series.flatMap((one, index) => {
          const several = spec.series.filter((other) => other.look === "strong").length > 1;
          const tint = colour(one.tint || (!several && tints[one.look]) || (several ? `c${1 + (index % 5)}` : `c${1 + (next++ % 5)}`));
          const xs = one.at || spec.x.values;
          return [{
            type: "line", name: one.name, symbol: xs.length > 25 ? "none" : "circle", symbolSize: one.size || (one.look === "points" ? 8 : 4),
            data: xs.map((x, at) => [x, one.values[at]]), lineStyle: { color: tint, ...(look[one.look] || { width: 1.5 }) },
            itemStyle: { color: tint },
            ...(spec.mark && index === 0 ? { markLine: lineMark([{ xAxis: spec.mark.at, name: spec.mark.name }], (mark) => mark.name) } : {}),
          }, ...(one.low ? [whiskers(one, xs, tint)] : [])];
        }),
      };
    },

    dots(spec, node) {
      const most = longest(node);
      const series = [];
      spec.series.forEach((one, number) => {
        const tint = colour(`c${number + 1}`);
        const shift = (number - (spec.series.length - 1) / 2) * 8;
        series.push({
          type: "custom", name: one.name, itemStyle: { color: tint }, encode: { x: [1, 2, 3], y: 0 },
          data: one.values.map((value, index) => [index, value, one.low[index], one.high[index]]).filter((row) => row[1] !== null),
          renderItem: (_, api) => {
            const at = (column) => api.coord([api.value(column), api.value(0)]);
            const [x, y] = at(1), [left] = at(2), [right] = at(3);
            return {
              type: "group", children: [
                { type: "line", shape: { x1: left, x2: right, y1: y + shift, y2: y + shift }, style: { stroke: tint, lineWidth: 1.5 } },
                { type: "circle", shape: { cx: x, cy: y + shift, r: 4 }, style: { fill: tint } },
              ],
            };
          },
        });
      });
      return {
        ...base(spec),
        tooltip: {
          ...base(spec).tooltip, trigger: "item",
          formatter: (row) => `${spec.names[row.value[0]]}\n${row.seriesName}  ${figure(row.value[1], 3)} ${spec.unit}\n` +
            `rounds  ${figure(row.value[2], 3)}–${figure(row.value[3], 3)} ${spec.unit}`,
        },
        grid: { ...base(spec).grid, bottom: 40 },
        xAxis: axis(spec.unit, { type: "value", min: spec.least }),
        yAxis: { ...named(spec.names, { most }), splitLine: { show: true, lineStyle: { color: colour("line"), width: 0.6 } } },
        series,
      };
    },

    heat(spec, node, choice, phase, map) {
      if (map === "difference") {
        return choice.before ? difference(spec, node, choice, phase || spec.phase) : nothing(`no selections of ${choice.name} in ${spec.sides[0]}`);
      }
      const counts = choice[phase || spec.phase];
      const experts = Math.max(...counts.map((row) => row.length));
      const cells = [];
      counts.forEach((row, layer) => {
        const own = row.slice(0, spec.experts[layer]);
        const total = row.reduce((sum, n) => sum + n, 0);
        const mean = own.reduce((sum, n) => sum + n, 0) / own.length;
        row.forEach((n, expert) => {
          const ratio = mean ? n / mean : 1;
          cells.push([expert, layer, Math.max(-2, Math.min(2, Math.log2(ratio || 0.01))), n, total ? n / total : 0, ratio]);
        });
      });
      const room = (node.clientWidth - 60) / experts;
      const roomy = room > 34 && counts.length <= 40;
      return {
        ...base(spec),
        legend: { show: false },
        tooltip: {
          ...base(spec).tooltip, trigger: "item",
          formatter: (cell) => {
            const [expert, layer, , n, share, ratio] = cell.value;
            return `${spec.layers[layer].trim()}E${expert}\n${figure(n)} selections\n${figure(100 * share, 3)} % of the layer\n${figure(ratio, 3)} × fair`;
          },
        },
        grid: { left: 8, right: 8, top: 8, bottom: 66, containLabel: true },
        xAxis: axis("expert", { type: "category", data: [...Array(experts).keys()].map((n) => `E${n}`), splitLine: { show: false },
          axisLabel: { color: colour("muted"), fontSize: 11, hideOverlap: true } }),
        yAxis: { ...named(spec.layers.map((layer) => layer.trim())), axisLabel: { color: colour("muted"), fontSize: 11, hideOverlap: true } },
        visualMap: {
          type: "continuous", min: -2, max: 2, dimension: 2, orient: "horizontal", left: "center", bottom: 0, itemHeight: 130,
          itemWidth: 11, text: ["4 × the fair share", "¼"], textStyle: { color: colour("muted"), fontSize: 11 },
          inRange: { color: [colour("cold"), colour("mid"), colour("hot")] }, hoverLink: false,
        },
        series: [{
          type: "heatmap", data: cells, emphasis: { disabled: true }, itemStyle: { borderColor: colour("bg"), borderWidth: room > 8 ? 1 : 0 },
          label: { show: roomy, color: colour("ink"), fontSize: 11, formatter: (cell) => figure(cell.value[3]) },
        }],
      };
    },

    roles(spec, node, choice) {
      const whole = choice.unit === "%";
      const labels = roleLabels(spec, node);
      const starts = spec.names.map(() => 0);
      const series = spec.series.map((one) => ({
        type: "custom", name: one.name, itemStyle: { color: colour(one.tint) }, encode: { x: [1, 2], y: 0 },
        data: (whole ? one.shares : one.values).map((value, index) => {
          const start = starts[index];
          starts[index] += value;
          return [index, start, start + value];
        }),
        renderItem: (_, api) => {
          const [left, y] = api.coord([api.value(1), api.value(0)]);
          const [right] = api.coord([api.value(2), api.value(0)]);
          return box({ x: left, y: y - 10, width: right - left, height: 20 }, one.tint, [one.name, `${figure(one.shares[api.value(0)], 2)} %`]);
        },
      }));
      return {
        ...base(spec),
        tooltip: {
          ...base(spec).tooltip, trigger: "item",
          formatter: (cell) => {
            const one = spec.series[cell.seriesIndex], at = cell.value[0];
            const held = one.holds[at] ? `\n${one.holds[at].split(", ").join("\n")}` : "";
            return `${wrapped([spec.names[at], spec.sides[at]].filter(Boolean).join(" · "), 60)}\n${one.name}  ${figure(one.values[at], 3)} ${spec.unit}  ${figure(one.shares[at], 3)} %${held}`;
          },
        },
        grid: { left: beside(labels), right: 18, top: legendHeight(spec, node) - 32, bottom: 50 },
        xAxis: axis(choice.unit, { type: "value", max: whole ? 100 : null }),
        yAxis: {
          ...named(spec.names.map((_, at) => String(at))),
          axisLabel: { color: colour("ink"), fontSize: 12, lineHeight: 13, interval: 0, formatter: (at) => labels[at] },
        },
        series,
      };
    },

    icicle(spec, node, choice) {
      const high = 46;
      return {
        ...base(spec),
        legend: { show: false },
        tooltip: {
          ...base(spec).tooltip, trigger: "item",
          formatter: (cell) => {
            const [, start, end, text, took, , of] = choice.nodes[cell.dataIndex];
            return `${of ? `${of}, ` : ""}${text}\n${took}\n${figure(100 * (end - start), 3)} % of the whole`;
          },
        },
        grid: { left: 0, right: 0, top: 0, bottom: 0 },
        xAxis: { type: "value", min: 0, max: 1, show: false },
        yAxis: { type: "value", min: 0, max: spec.levels, inverse: true, show: false },
        series: [{
          type: "custom", encode: { x: [1, 2], y: 0 }, data: choice.nodes.map((one) => one.slice(0, 3)),
          renderItem: (of, api) => {
            const [, start, end, text, took, tint] = choice.nodes[of.dataIndex];
            const share = figure(100 * (end - start), 3);
            const [left, top] = api.coord([api.value(1), api.value(0)]);
            const [right] = api.coord([api.value(2), api.value(0)]);
            return box({ x: left, y: top, width: right - left, height: high }, tint || "mid", [`${text} ${took}, ${share} %`, `${text} ${share} %`, text, text.startsWith("layer ") ? text.slice(6) : `${share} %`]);
          },
        }],
      };
    },

    layers(spec, node, choice) {
      const values = choice.cells.map((cell) => cell[2]);
      const most = Math.max(0, ...values.map(Math.abs)) || 1;
      const most_ = Math.floor(node.clientWidth / 24);
      const left = beside(["", ...choice.roles].map((role) => wrapped(role, most_)));
      const room = (node.clientWidth - left) / spec.layers.length;
      const roomy = room > 40;
      const said = spec.change ? signed : figure;
      const cells = choice.cells.map(([layer, row, value]) => [layer, row, value]);
      return {
        ...base(spec),
        legend: { show: false },
        tooltip: {
          ...base(spec).tooltip, trigger: "item",
          formatter: (cell) => {
            const [layer, row, value] = cell.value;
            return `${choice.roles[row]}, layer ${spec.layers[layer]}\n${said(value, 3)} ${spec.unit}`;
          },
        },
        ...(cells.length ? {} : nothing("no layers are known of this prompt")),
        grid: { left, right: 8, top: 8, bottom: 96 },
        xAxis: axis("layer", { type: "category", data: spec.layers, splitLine: { show: false },
          axisLabel: { color: colour("muted"), fontSize: 11, hideOverlap: true } }),
        yAxis: named(choice.roles, { most: most_ }),
        visualMap: {
          type: "continuous", min: spec.change ? -most : 0, max: most, dimension: 2, orient: "horizontal", left: "center", bottom: 0,
          itemHeight: 130, itemWidth: 11, hoverLink: false, textStyle: { color: colour("muted"), fontSize: 11 },
          text: [`${said(most, 3)} ${spec.unit}`, spec.change ? said(-most, 3) : "0"],
          inRange: { color: spec.change ? [colour("cold"), colour("mid"), colour("hot")] : [colour("mid"), colour("hot")] },
        },
        series: [{
          type: "heatmap", data: cells, emphasis: { disabled: true }, itemStyle: { borderColor: colour("bg"), borderWidth: room > 8 ? 1 : 0 },
          label: { show: roomy, color: colour("ink"), fontSize: 11, formatter: (cell) => (Math.abs(cell.value[2]) < most / 1000 ? "0" : said(cell.value[2], 2)) },
        }],
      };
    },

    reach(spec, node, choice) {
      const dot = (point, at) => ({ name: point.name, value: at, itemStyle: { color: colour(point.tint), borderColor: colour(point.tint), opacity: 1 } });
      const widest = Math.max(1, ...choice.points.flatMap((point) => [point.at, point.was || point.at]).map((at) => at[0]));
      const was = choice.points.filter((point) => point.was);
      const range = Math.min(100, Math.ceil(widest / 9) * 10);
      const most = narrow(node) ? 16 : 40;
      /* A name stands where no other dot does: right of its own, else left, else above. */
      const place = ({ name, at: [x, y] }) => {
        const long = ((6 * Math.min(most, name.length) + 16) / (node.clientWidth - 70)) * range;
        const free = (way) => x + way * long >= 0 && x + way * long <= range && !choice.points.some(({ at }) => {
          const far = (at[0] - x) * way;
          return far > 0 && far < long && Math.abs(at[1] - y) < 6;
        });
        return free(1) ? "right" : free(-1) ? "left" : "top";
      };
      return {
        ...base(spec),
        legend: { show: false },
        tooltip: {
          ...base(spec).tooltip, trigger: "item",
          formatter: (cell) => {
            const point = choice.points.find((one) => one.name === cell.name);
            if (point === undefined) return "";
            const told = (at, side) => `${side ? `${side}: ` : ""}${figure(at[0], 3)} % of the time, ${figure(at[1], 3)} % of the limit`;
            return [point.name, point.took, ...(point.was ? [told(point.was, spec.sides[0]), told(point.at, spec.sides[1])] : [told(point.at, "")])].join("\n");
          },
        },
        ...(choice.points.length ? {} : nothing("no figure of this prompt")),
        grid: { ...base(spec).grid, bottom: 40, top: 40, right: 28 },
        xAxis: axis(`${spec.x.name}, ${spec.x.unit}`, { type: "value", min: 0, max: range }),
        yAxis: upright(`${spec.y.name}, ${spec.y.unit}`, { type: "value", min: 0, max: 100 }),
        series: [
          { type: "lines", coordinateSystem: "cartesian2d", silent: true, lineStyle: { color: colour("muted"), width: 1, opacity: 0.7 },
            data: was.map((point) => ({ coords: [point.was, point.at] })) },
          { type: "scatter", symbolSize: 9, data: was.map((point) => {
            const made = dot(point, point.was);
            return { ...made, itemStyle: { ...made.itemStyle, color: colour("bg"), borderWidth: 1.6 } };
          }) },
          {
            type: "scatter", symbolSize: 12, data: choice.points.map((point) => ({
              ...dot(point, point.at), label: { show: true, position: place(point), color: colour("ink"), fontSize: 11, formatter: (cell) => wrapped(cell.name, most) },
            })), labelLayout: { hideOverlap: true, moveOverlap: "shiftY" },
          },
        ],
      };
    },

    scatter(spec, node) {
      const sizes = spec.points.map((point) => point.z).filter((z) => z !== null);
      const [least, most] = [Math.min(...sizes), Math.max(...sizes)];
      const size = (z) => (z === null || most === least ? 12 : 9 + (13 * (z - least)) / (most - least));
      const front = spec.points.filter((point) => point.front).sort((a, b) => a.x - b.x);
      const xs = spec.points.map((point) => point.x).filter((x) => x !== null);
      const [left, right] = [Math.min(...xs), Math.max(...xs)];
      const middle = spec.x.log ? Math.sqrt(left * right) : (left + right) / 2;
      const row = (point) => ({
        name: point.name, value: [point.x, point.y, point.z], symbolSize: size(point.z),
        label: { position: point.x > middle ? "left" : "right" },
      });
      return {
        ...base(spec),
        tooltip: {
          ...base(spec).tooltip, trigger: "item",
          formatter: (cell) => {
            const point = spec.points.find((one) => one.name === cell.name);
            return point === undefined ? "" : `${point.name}\n${spec.y.name}  ${figure(point.y, 3)} ${spec.y.unit}\n${spec.x.name}  ${figure(point.x, 3)} ${spec.x.unit}` +
              (point.z === null ? "" : `\npeak memory  ${figure(point.z, 4)} ${point.zunit}`);
          },
        },
        grid: { ...base(spec).grid, bottom: 40, top: 60 },
        xAxis: axis(`${spec.x.name}, ${spec.x.unit}`, spec.x.log ? powers : { type: "value", scale: true }),
        yAxis: upright(`${spec.y.name}, ${spec.y.unit}`, { type: "value", scale: true }),
        series: [
          {
            type: "scatter", name: "beaten by another", data: spec.points.filter((point) => !point.front).map(row),
            itemStyle: { color: colour("bg"), borderColor: colour("c5"), borderWidth: 1.6 },
          },
          {
            type: "scatter", name: "Pareto set", data: front.map(row), itemStyle: { color: colour("c1") },
            label: { show: !narrow(node), position: "right", color: colour("ink"), fontSize: 11, formatter: (cell) => wrapped(cell.name, 60) },
            labelLayout: { hideOverlap: true, moveOverlap: "shiftY" },
          },
        ],
      };
    },

    trend(spec, node, choice) {
      const unit = choice.unit;
      const edge = fence(choice.values, { floor: 0.25, both: true });
      const tint = (change) => colour(change.worse === null ? "muted" : change.worse ? "bad" : "good");
      return {
        ...base(spec),
        legend: { show: false },
        tooltip: {
          ...base(spec).tooltip, trigger: "axis", axisPointer: { lineStyle: { color: colour("muted") } },
          formatter: (rows) => {
            const at = rows[0].value instanceof Array ? rows[0].value[0] : rows[0].dataIndex;
            const change = choice.changes.find((one) => one.at === at);
            return `${wrapped(spec.runs[at].says, 60)}\n${figure(choice.values[at])} ${unit}${change ? `\nchange point: ${change.name}` : ""}`;
          },
        },
        grid: { ...base(spec).grid, bottom: 12, top: 40 },
        xAxis: axis("", { type: "category", data: spec.runs.map((run) => run.name), splitLine: { show: false },
          axisLabel: { color: colour("muted"), fontSize: 11, hideOverlap: true } }),
        yAxis: upright(unit, { type: "value", scale: true, ...edge }),
        series: [
          ...beyond(choice.values.map((value, at) => [at, value]), { min: -Infinity, max: Infinity, ...edge }, unit),
          {
            type: "line", data: choice.values, symbol: "circle", symbolSize: 5, connectNulls: false,
            lineStyle: { color: colour("c1"), width: 1, opacity: 0.55 }, itemStyle: { color: colour("c1") },
            markLine: {
              ...lineMark([], (mark) => mark.name),
              data: choice.changes.map((change) => ({
                xAxis: change.at, name: change.name, lineStyle: { color: tint(change), type: "solid", width: 1 },
                label: { color: tint(change), formatter: change.name, fontSize: 11 },
              })),
            },
          },
          ...choice.levels.map((level) => ({
            type: "line", silent: true, symbol: "none", lineStyle: { color: colour("ink"), width: 1.6 },
            data: choice.values.map((_, index) => (index >= level.from && index <= level.to ? level.value : null)),
          })),
        ],
      };
    },
  };

  /* A prompt's name stands at the upper one of its two bars, and at each what it is. */
  function roleLabels(spec, node) {
    const most = longest(node, 30);
    return spec.names.map((name, at) => {
      const first = !at || name !== spec.names[at - 1];
      return wrapped(!spec.sides[at] ? name : first ? `${name}: ${spec.sides[at]}` : spec.sides[at], most);
    });
  }
  /* So high is a row whose name needs the most lines. */
  const rowHeight = (names, least) => Math.max(least, 14 * Math.max(...names.map(lineCount)) + 8);
  const heights = {
    stacked: (spec, node) => 76 + rowHeight(spec.names.map((name) => wrapped(name, longest(node))), 24) * spec.names.length,
    dots: (spec, node) => 90 + rowHeight(spec.names.map((name) => wrapped(name, longest(node))), 26) * spec.names.length,
    roles: (spec, node) => 24 + legendHeight(spec, node) + rowHeight(roleLabels(spec, node), 26) * spec.names.length,
    icicle: (spec) => 48 * spec.levels,
    layers: (spec, node) => {
      const most = Math.floor(node.clientWidth / 24);
      return 110 + Math.max(...spec.choices.map((one) => rowHeight(["", ...one.roles].map((role) => wrapped(role, most)), 24) * one.roles.length));
    },
    reach: () => 340,
    heat: (spec) => 90 + Math.max(130, Math.min(900, spec.layers.length * (spec.layers.length > 24 ? 12 : 26))),
  };

  /* Over so many pixels a legend goes: its entries fill line after line. */
  function legendLines(spec, node) {
    let [lines, left] = [1, node.clientWidth];
    for (const one of spec.series) {
      const width = 38 + 6.8 * one.name.length;
      if (width > left && left < node.clientWidth) [lines, left] = [lines + 1, node.clientWidth];
      left -= width;
    }
    return lines;
  }

  function legendHeight(spec, node) {
    return 25 * legendLines(spec, node) + 36;
  }

  return { kinds, heights, nothing, shareChanges };
})();
