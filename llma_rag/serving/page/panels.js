// The panels beside the conversation; on narrow screens an open one takes its place.

const narrow = matchMedia("(max-width: 900px)");
const panels = [...document.querySelectorAll(".panel")];
const origins = new Map(); // what had the focus when a panel was opened

/** Show a panel and move the focus into it. */
export function openPanel(panel) {
  if (narrow.matches) panels.filter((other) => other !== panel).forEach(hide);
  if (panel.hidden || !panel.contains(document.activeElement)) origins.set(panel, document.activeElement);
  panel.hidden = false;
  settle();
  panel.focus({ preventScroll: true });
}

/** Hide a panel; the focus goes back to where it came from. */
export function closePanel(panel) {
  hide(panel);
  settle();
  origins.get(panel)?.focus();
}

function hide(panel) {
  panel.hidden = true;
}

function settle() {
  for (const panel of panels) {
    document.querySelector(`[aria-controls=${panel.id}]`)?.setAttribute("aria-expanded", String(!panel.hidden));
  }
  document.querySelector("main").inert = narrow.matches && panels.some((panel) => !panel.hidden);
}

narrow.addEventListener("change", settle);
for (const panel of panels) {
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.defaultPrevented) closePanel(panel);
  });
}
