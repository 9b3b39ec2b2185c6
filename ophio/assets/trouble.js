// Comes before everything else in a page: tells where 3Dmol.js did not load.
addEventListener("error", (event) => {
  if (event.target.tagName !== "SCRIPT") return;
  complain(`3Dmol.js did not load from ${event.target.src}. Without internet, make the page with --viewer-js.`);
}, true);
function complain(reason) {
  const box = document.getElementById("trouble");
  box.textContent = reason;
  box.style.display = "block";
}
