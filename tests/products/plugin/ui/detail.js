// What the plugin shows about itself.
import { createElement } from "/api/shim/react.js";

export default function Detail({ instanceId }) {
  return createElement("p", null, `This is ${instanceId}.`);
}
