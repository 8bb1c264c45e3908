// What hello-web shows about itself: its own route, asked through Hostler.
import { createElement as h, useEffect, useState } from "/api/shim/react.js";

export default function Detail({ instanceId }) {
  const [told, setTold] = useState(null);
  useEffect(() => {
    fetch(`/api/plugins/${encodeURIComponent(instanceId)}/greetings`)
      .then((answer) => answer.json())
      .then(setTold);
  }, [instanceId]);
  return h("p", null, told ? `${told.greeting}, for the ${told.number}th time.` : "…");
}
