// What every page with structures has: its data, and colours.
const SECONDARY = { h: "#c8476b", s: "#e0a526", c: "#a9b8c4" };
const CONFIDENCE = [[90, "#0053d6"], [70, "#65cbf3"], [50, "#ffdb13"], [-Infinity, "#ff7d45"]]; // AlphaFold's bands
const RAMP = ["#2c6fbb", "#7fb2d9", "#efe6c8", "#e58c53", "#b8252f"];
const RAINBOW = "linear-gradient(90deg, #a0a, #33e, #0bb, #2d2, #dd0, #e70, #e22)";

// The JSON of the page: gzip, then base64.
async function unpack(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// Calls `start` with the data of the page, once 3Dmol.js is there and has made the viewers.
function begin(start) {
  $3Dmolpromise.then(async () => {
    if (typeof $3Dmol === "undefined") throw new Error("3Dmol.js did not load");
    await start(await unpack("data"));
  }).catch((error) => {
    complain(`Structures cannot be drawn: ${error.message}. The browser needs WebGL.`);
    throw error;
  });
}

function mixed(value, [low, high]) {
  const place = Math.min(Math.max((value - low) / (high - low || 1), 0), 1) * (RAMP.length - 1);
  const k = Math.min(Math.floor(place), RAMP.length - 2), rest = place - k;
  const parts = [1, 3, 5].map((i) => {
    const [a, b] = [RAMP[k], RAMP[k + 1]].map((colour) => parseInt(colour.slice(i, i + 2), 16));
    return Math.round(a + (b - a) * rest).toString(16).padStart(2, "0");
  });
  return `#${parts.join("")}`;
}

// The part of a 3Dmol style that says a colour; `values` are by residue number and insertion code.
function colouring(scheme, ranges, values) {
  if (scheme === "rainbow") return { color: "spectrum" };
  const of = {
    "secondary structure": (atom) => SECONDARY[atom.ss] || SECONDARY.c,
    "confidence": (atom) => CONFIDENCE.find(([least]) => atom.b >= least)[1],
    "B-factor": (atom) => mixed(atom.b, ranges[scheme]),
    "deviation": (atom) => mixed(values[`${atom.resi}${(atom.icode || "").trim()}`] ?? 0, ranges[scheme]),
  };
  return { colorfunc: of[scheme] };
}

function legend(scheme, ranges) {
  const patch = (colour, text) => `<span><i style="background:${colour}"></i>${text}</span>`;
  const ramp = (low, colours, high) => `${low} <i class="ramp" style="background:${colours}"></i> ${high}`;
  if (scheme === "rainbow") return ramp("N", RAINBOW, "C");
  if (scheme === "secondary structure") {
    return patch(SECONDARY.h, "helix") + patch(SECONDARY.s, "strand") + patch(SECONDARY.c, "other");
  }
  if (scheme === "confidence") {
    return ["above 90", "70-90", "50-70", "below 50"].map((text, k) => patch(CONFIDENCE[k][1], text)).join("");
  }
  const [low, high] = ranges[scheme], unit = scheme === "deviation" ? " Å" : "";
  return ramp(`${low}${unit}`, `linear-gradient(90deg, ${RAMP.join(", ")})`, `${high}${unit} and more`);
}
