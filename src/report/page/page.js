// Values on hover at once, also by touch: titles move to an attribute, so that the browser does not show them as well.
const hover = document.getElementById("hover");
for (const title of document.querySelectorAll("svg.chart title")) {
  title.parentNode.dataset.value = title.textContent;
  title.remove();
}
for (const token of document.querySelectorAll(".tk[title]")) {
  token.dataset.value = token.title;
  token.removeAttribute("title");
}
function place(event) {
  const at = event.target.closest?.("[data-value]");
  hover.hidden = !at;
  if (!at) return;
  hover.textContent = at.dataset.value;
  const { offsetWidth: w, offsetHeight: h } = hover, gap = 14;
  const x = Math.min(event.clientX + gap, document.documentElement.clientWidth - w - 4);
  const y = event.clientY + gap + h > innerHeight ? event.clientY - gap - h : event.clientY + gap;
  hover.style.transform = `translate(${Math.max(4, x)}px, ${Math.max(4, y)}px)`;
}
addEventListener("pointermove", place);
addEventListener("pointerdown", place);
addEventListener("scroll", () => { hover.hidden = true; }, { passive: true });
// On paper, what is folded is left out: the CSV has it.
const links = [...document.querySelectorAll("nav a")];
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links) link.toggleAttribute("aria-current", link.hash === "#" + entry.target.id);
  }
}, { rootMargin: "-10% 0px -80% 0px" });
for (const section of document.querySelectorAll("main section")) seen.observe(section);
