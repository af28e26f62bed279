// The reference of the API, made from what the server says of itself.

import { get } from "../api.js";
import { byId, h, replace } from "../dom.js";
import { draw } from "../shell.js";

await draw(byId("content"), async () => {
  const reference = await get("/openapi.json");
  const entries = Object.entries(reference.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, entry]) => ({ path, method, ...entry })));
  replace(byId("content"), h("div.panel", {}, entries.map(endpoint)));
});

function endpoint({ path, method, summary, description, parameters = [] }) {
  const query = parameters.filter((one) => one.in === "query");
  return h(
    "article.endpoint",
    {},
    h("span.method", { class: method }, method.toUpperCase()),
    h(
      "div",
      {},
      h("code", {}, path),
      h("p.muted", {}, summary ?? description ?? ""),
      query.length > 0 && h("dl.links-list.small", {}, query.map((one) => [h("dt.mono", {}, one.name), h("dd", {}, one.description ?? one.schema?.description ?? one.schema?.type ?? "")])),
    ),
  );
}
