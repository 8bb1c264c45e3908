// Points the reference at this server's own description, in the reader's choice of light or dark.
const page = document.querySelector("rapi-doc");
const dark = window.matchMedia("(prefers-color-scheme: dark)");

const paint = () => page.setAttribute("theme", dark.matches ? "dark" : "light");

dark.addEventListener("change", paint);
paint();
page.setAttribute("spec-url", "/api/openapi.json");
