// The page on which the plugin is configured: the server brings React.
import { createElement } from "/api/shim/react.js";

export default function Config({ config, onSave }) {
  return createElement("button", { onClick: () => onSave({ ...config, greeting: "hello" }) }, "Configure");
}
