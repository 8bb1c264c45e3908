// The page on which hello-web is configured. Hostler brings React, and passes what there is and where it goes.
import { createElement as h, useState } from "/api/shim/react.js";

export default function Config({ config, onSave }) {
  const [greeting, setGreeting] = useState(config?.greeting ?? "Hello");
  const save = (event) => {
    event.preventDefault();
    onSave({ ...config, greeting });
  };
  return h(
    "form",
    { onSubmit: save },
    h("label", null, "What it says ", h("input", { value: greeting, onChange: (event) => setGreeting(event.target.value) })),
    h("button", { type: "submit" }, "Save"),
  );
}
