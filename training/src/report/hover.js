// The nearest step under the pointer, read out beside the chart's title.
for (const svg of document.querySelectorAll("svg[data-points]")) {
  const points = svg.dataset.points.split(";").map((p) => {
    const [x, y, ...text] = p.split(",");
    return { x: Number(x), y: Number(y), text: text.join(",") };
  });
  const reading = svg.closest("article").querySelector(".reading");
  const newest = reading.textContent;
  const cursor = svg.querySelector(".cursor");
  const [line, dot] = cursor.children;
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const near = points.reduce((a, b) => (Math.abs(b.x - x) < Math.abs(a.x - x) ? b : a));
    line.setAttribute("x1", near.x);
    line.setAttribute("x2", near.x);
    dot.setAttribute("cx", near.x);
    dot.setAttribute("cy", near.y);
    cursor.setAttribute("visibility", "visible");
    reading.textContent = near.text;
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    reading.textContent = newest;
  });
}
