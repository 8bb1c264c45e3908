// Lists notes and adds one; the API lies beside the page, at .../api.
const list = document.getElementById("notes");
const api = new URL("api/notes", new URL(".", location.href));

async function show() {
  const notes = await (await fetch(api)).json();
  list.replaceChildren(
    ...notes.map(({ text }) => Object.assign(document.createElement("li"), { textContent: text })),
  );
}

document.getElementById("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = document.getElementById("text");
  await fetch(api, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ text: field.value }),
  });
  field.value = "";
  await show();
});

await show();
