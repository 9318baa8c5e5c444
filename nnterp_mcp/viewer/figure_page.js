/** A page that shows one figure. */

import { introduced, panels } from "./figure.js";

const { figure } = JSON.parse(document.getElementById("run").textContent);
introduced(figure);
document.getElementById("status").textContent = "";
document.getElementById("stage").replaceChildren(panels(figure.panels));
