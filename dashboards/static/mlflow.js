// Preferences of MLflow's interface, set before it starts: the panel of its assistant, which is not served here, stays shut.
"use strict";
try {
  localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
  localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
} catch {
  // no storage, no preference
}
