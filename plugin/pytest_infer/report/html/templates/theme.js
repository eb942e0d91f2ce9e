"use strict";
/* The theme: the system's, light or dark, as it was chosen last; who draws hears of it. */
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const modes = ["system", "light", "dark"];
  const kept = (() => { try { return localStorage.getItem("pytest-infer-theme"); } catch { return null; } })();
  let mode = modes.includes(kept) ? kept : "system";
  const tell = () => document.dispatchEvent(new Event("theme"));
  function wear() {
    if (mode === "system") delete root.dataset.theme;
    else root.dataset.theme = mode;
    button.lastChild.data = mode;
    tell();
  }
  button.hidden = false;
  button.addEventListener("click", () => {
    mode = modes[(modes.indexOf(mode) + 1) % modes.length];
    try { localStorage.setItem("pytest-infer-theme", mode); } catch { /* a page without storage keeps the choice until it is closed */ }
    wear();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);
  wear();
})();
