/** A page that shows one figure. */

import { introduce, panels } from "./figure.js";

const { figure } = JSON.parse(document.getElementById("run").textContent);
introduce(figure);
document.getElementById("status").textContent = "";
document.getElementById("stage").replaceChildren(panels(figure.panels));
