// Runs before the page is drawn, so that a chosen theme does not flash in late.
(() => {
  const kept = localStorage.getItem("prunegpt-theme");
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
})();
