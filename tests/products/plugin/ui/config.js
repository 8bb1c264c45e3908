// The page on which the plugin is configured: React comes from the shim that the server serves.
import { createElement } from "react";

export default function Config({ config, onSave }) {
  return createElement("button", { onClick: () => onSave({ ...config, greeting: "hello" }) }, "Configure");
}
