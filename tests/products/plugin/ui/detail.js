// What the plugin shows about itself.
import { createElement } from "react";

export default function Detail({ instanceId }) {
  return createElement("p", null, `This is ${instanceId}.`);
}
