// Line drawings on a 24 by 24 grid, for buttons. They take the colour of the text beside them and are silent to screen readers.

const SVG = "http://www.w3.org/2000/svg";
const DRAWINGS = {
  new: "M12 5v14M5 12h14",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 4.5v5M9 14.5v5",
  dashboard: "M4 20V10M10 20V4M16 20v-7M22 20H2",
  chat: "M4 5h16v11H10l-4 4v-4H4z",
  language: "M3 12h18M12 3c3 3 3 15 0 18M12 3c-3 3-3 15 0 18M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18",
  close: "M6 6l12 12M18 6L6 18",
  send: "M12 19V6M6 11l6-6 6 6",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  retry: "M19 12a7 7 0 1 1-2-5M19 4v4h-4",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  copied: "M5 12l5 5 9-10",
  down: "M12 5v14M6 13l6 6 6-6",
};

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  path.setAttribute("d", DRAWINGS[name]);
  svg.append(path);
  return svg;
}

// Puts the drawing that data-icon names before the words of each such element of the page.
export function drawIcons() {
  for (const node of document.querySelectorAll("[data-icon]")) node.prepend(icon(node.dataset.icon));
}
