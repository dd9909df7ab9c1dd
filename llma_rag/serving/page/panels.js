// The panels beside the conversation: two share the right side, and on narrow screens an open one takes all of it.

const narrow = matchMedia("(max-width: 900px)");
const panels = [...document.querySelectorAll(".panel")];
const origins = new Map(); // what had the focus when a panel was opened
const replaced = new Map(); // the panel in whose place a panel was opened

/** Show a panel and move the focus into it. */
export function openPanel(panel, { takeFocus = true } = {}) {
  const rivals = panels.filter((other) => other !== panel && (narrow.matches || other.dataset.side === panel.dataset.side));
  for (const rival of rivals.filter((other) => !other.hidden)) {
    rival.hidden = true;
    if (!narrow.matches) replaced.set(panel, rival);
  }
  if (!panel.contains(document.activeElement)) origins.set(panel, document.activeElement);
  panel.hidden = false;
  settle();
  if (takeFocus) panel.focus({ preventScroll: true });
}

/** Hide a panel; what it replaced comes back, and the focus goes to where it came from. */
export function closePanel(panel) {
  panel.hidden = true;
  const before = replaced.get(panel);
  replaced.delete(panel);
  if (before && !narrow.matches) before.hidden = false;
  settle();
  const origin = origins.get(panel);
  if (origin?.isConnected && origin !== document.body) origin.focus();
  else document.querySelector(`[aria-controls=${panel.id}]`)?.focus();
}

/** Close a panel if it covers the conversation. */
export function closeWhereItCovers(panel) {
  if (narrow.matches && !panel.hidden) closePanel(panel);
}

function settle() {
  for (const panel of panels) {
    document.querySelector(`[aria-controls=${panel.id}]`)?.setAttribute("aria-expanded", String(!panel.hidden));
  }
  document.querySelector("main").inert = narrow.matches && panels.some((panel) => !panel.hidden);
}

narrow.addEventListener("change", () => {
  if (narrow.matches) for (const panel of panels) panel.hidden = !panel.contains(document.activeElement);
  settle();
});
for (const panel of panels) {
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented) return;
    event.preventDefault();
    closePanel(panel);
  });
}
