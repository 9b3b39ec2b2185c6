// Cards with pictures, drawn one after another by a viewer that nobody sees; a click opens a structure to turn.
begin(async ({ structures, ranges }) => {
  const at = (id) => document.getElementById(id);
  const scheme = at("scheme"), stage = at("stage"), cards = [...document.querySelectorAll(".card")];
  const small = viewer_studio, large = viewer_large;
  let open = null, drawing = 0;

  function draw(viewer, entry, original, sidechains) {
    const colour = colouring(scheme.value, ranges, entry.values || {});
    viewer.clear();
    const model = viewer.addModel(entry.pdb, "pdb");
    model.setStyle({}, { cartoon: colour });
    if (sidechains) viewer.addStyle({ model, not: { atom: ["N", "C", "O"] } }, { stick: { radius: 0.12, ...colour } });
    if (entry.original && original) {
      const other = viewer.addModel(entry.original, "pdb"), grey = "#6b7680";
      other.setStyle({}, { cartoon: { color: grey, opacity: 0.55 } });
      if (sidechains) viewer.addStyle({ model: other, not: { atom: ["N", "C", "O"] } }, { stick: { radius: 0.07, color: grey } });
    }
  }

  async function pictures() {
    const mine = ++drawing;
    at("legend").innerHTML = at("legend-large").innerHTML = legend(scheme.value, ranges);
    for (const [k, entry] of structures.entries()) {
      draw(small, entry, true, false);
      small.zoomTo();
      small.render();
      cards[k].querySelector("img").src = small.pngURI();
      await new Promise((resolve) => setTimeout(resolve));
      if (mine !== drawing) return; // another colour was chosen meanwhile
    }
    document.body.dataset.drawn = scheme.value;
  }

  function enlarge(k, keep) {
    open = k;
    stage.classList.add("shown");
    at("name").textContent = cards[k].querySelector("b").textContent;
    at("about").textContent = cards[k].querySelector(".caption").textContent;
    at("previous").disabled = k === 0;
    at("next").disabled = k === structures.length - 1;
    draw(large, structures[k], at("original")?.checked, at("sidechains").checked);
    large.resize();
    if (!keep) {
      large.zoomTo();
      large.zoom(1.2);
    }
    large.render();
  }

  function close() {
    open = null;
    stage.classList.remove("shown");
  }

  function save(k) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([structures[k].pdb], { type: "chemical/x-pdb" }));
    link.download = structures[k].file;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  cards.forEach((card, k) => {
    card.querySelector(".open").addEventListener("click", () => enlarge(k));
    card.querySelector(".save").addEventListener("click", () => save(k));
  });
  scheme.addEventListener("change", pictures);
  at("scheme-large").addEventListener("change", () => {
    scheme.value = at("scheme-large").value;
    enlarge(open, true);
    pictures();
  });
  scheme.addEventListener("change", () => { at("scheme-large").value = scheme.value; });
  for (const id of ["sidechains", "original"]) at(id)?.addEventListener("change", () => enlarge(open, true));
  at("previous").addEventListener("click", () => enlarge(open - 1));
  at("next").addEventListener("click", () => enlarge(open + 1));
  at("close").addEventListener("click", close);
  at("save").addEventListener("click", () => save(open));
  stage.addEventListener("click", (event) => { if (event.target === stage) close(); });
  document.addEventListener("keydown", (event) => {
    if (open === null || event.target.tagName === "SELECT") return;
    if (event.key === "Escape") close();
    if (event.key === "ArrowLeft" && open > 0) enlarge(open - 1);
    if (event.key === "ArrowRight" && open < structures.length - 1) enlarge(open + 1);
  });
  await pictures();
});
