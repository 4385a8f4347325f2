// Before MLflow's interface starts: what is not served here (its assistant, logins) is not asked for either, and the
// assistant's panel stays shut.
"use strict";
try {
  localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
  localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
} catch {
  // no storage, no preference
}

const absent = /\bajax-api\/[\d.]+\/mlflow\/(assistant|users)\//;
const ask = window.fetch;
window.fetch = (resource, options) =>
  absent.test(resource.url ?? resource)
    ? Promise.resolve(new Response("Not served here.\n", { status: 404 }))
    : ask(resource, options);
