"use strict";
(() => {
  // Exact on every device: on graphics cards of phones the host's tensors are rounded to half precision.
  if (window._tfengine) window._tfengine.setBackend("cpu");
  const dressed = (figure) => {
    const selector = figure.querySelector(":scope > div > div:first-child");
    if (figure.dataset.component !== "ColoredTokensMulti" || !selector) return;
    for (const choice of selector.children) {
      choice.setAttribute("role", "button");
      choice.tabIndex = 0;
      choice.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        choice.click();
      });
    }
  };
  // circuitsvis writes a token as HTML in the text but as plain text in its tooltip: there, undo our escaping.
  const plain = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'" };
  const untangled = (tooltip) => {
    const title = tooltip.firstElementChild;
    if (!title || !tooltip.querySelector(":scope > table")) return;
    title.textContent = title.textContent.replace(/&(amp|lt|gt|quot|#x27);/g, (entity) => plain[entity]);
  };
  const mount = (figure) => {
    if (figure.dataset.mounted) return;
    figure.dataset.mounted = "yes";
    const props = JSON.parse(document.getElementById(figure.dataset.props).textContent);
    new MutationObserver((_, observer) => {
      observer.disconnect();
      dressed(figure);
    }).observe(figure, { childList: true });
    new MutationObserver((changes) => {
      for (const change of changes) for (const node of change.addedNodes) if (node.nodeType === 1) untangled(node);
    }).observe(figure, { childList: true, subtree: true });
    window.CircuitsVis.render(figure.id, window.CircuitsVis[figure.dataset.component], props);
  };
  const figures = document.querySelectorAll("[data-component]");
  const near = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => mount(entry.target)),
    { rootMargin: "300px" },
  );
  figures.forEach((figure) => near.observe(figure));
})();
