// The frames of a path: a slider and a play button choose one, plots mark it.
begin(async ({ frames, ranges }) => {
  const at = (id) => document.getElementById(id);
  const slider = at("frame"), button = at("play"), scheme = at("scheme"), last = Number(slider.max);
  const viewer = viewer_path;
  let timer = null, step = 1;

  async function show() {
    const k = Number(slider.value);
    at("shown").textContent = `${k + 1} of ${last + 1}`;
    for (const svg of document.querySelectorAll(".curves svg")) {
      const { left, width } = svg.dataset;
      svg.querySelector(".now").setAttribute("transform", `translate(${Number(left) + (width * k) / Math.max(last, 1)})`);
    }
    for (const line of document.querySelectorAll("[data-values]")) {
      const value = JSON.parse(line.dataset.values)[k];
      line.querySelector("b").textContent = value === null ? "-" : Number(value.toPrecision(3));
    }
    await viewer.setFrame(k);
    viewer.render();
  }

  function colour() {
    at("legend").innerHTML = legend(scheme.value, ranges);
    viewer.setStyle({}, { cartoon: colouring(scheme.value, ranges) });
    viewer.render();
  }

  function advance() {
    const next = Number(slider.value) + step;
    if (next > last || next < 0) step = -step;
    slider.value = Number(slider.value) + step;
    show();
  }

  viewer.addModelsAsFrames(frames, "pdb");
  viewer.zoomTo();
  colour();
  slider.addEventListener("input", show);
  scheme.addEventListener("change", colour);
  button.addEventListener("click", () => {
    if (timer) {
      clearInterval(timer);
      timer = null;
    } else {
      timer = setInterval(advance, 120);
    }
    button.textContent = timer ? "Stop" : "Play";
  });
  for (const svg of document.querySelectorAll(".curves svg")) {
    svg.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
      const place = ((event.clientX - box.left) * scale - svg.dataset.left) / svg.dataset.width;
      slider.value = Math.round(place * last);
      show();
    });
  }
  await show();
  document.body.dataset.drawn = scheme.value;
});
