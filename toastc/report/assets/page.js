"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);

function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function coloured(layout) {
  const style = getComputedStyle(document.documentElement);
  const [ink, line, ground] = ["--ink", "--line", "--ground"].map((name) => style.getPropertyValue(name).trim());
  const made = structuredClone(layout);
  Object.assign(made, { paper_bgcolor: ground, plot_bgcolor: ground, font: { color: ink, family: "system-ui, sans-serif", size: 12 } });
  for (const axis of ["xaxis", "yaxis"]) made[axis] = { gridcolor: line, zerolinecolor: line, linecolor: line, ...made[axis] };
  made.hoverlabel = { bgcolor: ground, bordercolor: line, font: { color: ink } };
  return made;
}

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function draw() {
  const script = document.createElement("script");
  script.textContent = await unpacked("plotly");
  document.head.append(script);
  const figures = read("figures");
  const narrow = innerWidth < 600;
  for (const { key, drawn } of figures) {
    const layout = narrow ? { ...drawn.layout, showlegend: false } : drawn.layout;
    const config = { responsive: true, displaylogo: false, toImageButtonOptions: { format: "svg", filename: key },
      modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]] };
    await Plotly.newPlot(`plot-${key}`, drawn.data, coloured(layout), config);
  }
  const recolour = () => figures.forEach(({ key, drawn }) => Plotly.relayout(`plot-${key}`, coloured(drawn.layout)));
  document.getElementById("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    recolour();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  document.body.dataset.drawn = figures.length;
}

function sortable(table) {
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const order = (a, b) => (isNaN(a) || isNaN(b) || a === "" || b === "" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
    const rows = [...table.tBodies[0].rows].sort((a, b) => (up ? 1 : -1) * order(value(a), value(b)));
    table.tBodies[0].append(...rows);
  }));
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.getElementById("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([document.getElementById("report").textContent], { type: "application/json" }));
  link.download = "report.json";
  link.click();
});
draw();
