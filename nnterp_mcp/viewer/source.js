/** Where the page has its run from: the host that shows it, the server that it came from, or itself. */

import { Host, structured } from "./host.js";

/**
 * Connects, and tells of every answer to show.
 *
 * @param {(answer: object) => void} onAnswer hears the structured content of a tool's answer
 * @param {(message: string) => void} onTrouble hears what is to be said instead
 * @returns {Promise<(parameters: object) => Promise<object>>} answers `read_run`
 */
export async function connect(onAnswer, onTrouble) {
  const { source, version } = document.documentElement.dataset;
  if (source === "host") return fromHost(version, onAnswer, onTrouble);
  const read = source === "server" ? fromServer : fromPage();
  setTimeout(() => read({ part: "answer" }).then(onAnswer, (error) => onTrouble(error.message)));
  return read;
}

async function fromHost(version, onAnswer, onTrouble) {
  const host = new Host();
  host.on("ui/notifications/tool-result", (result) => {
    try {
      onAnswer(structured(result));
    } catch (error) {
      onTrouble(error.message);
    }
  });
  host.on("ui/notifications/tool-cancelled", ({ reason }) => onTrouble(`The call was cancelled. ${reason ?? ""}`));
  await host.connect(version, (context) => {
    dress(context);
    offerFullScreen(host);
  });
  return (parameters) => host.callTool("read_run", parameters);
}

/** Puts on the host's theme and those of its colours and fonts that the page knows. */
function dress({ theme, styles }) {
  const root = document.documentElement;
  if (theme) root.dataset.theme = theme;
  for (const [name, value] of Object.entries(styles?.variables ?? {})) {
    if (/^--(color|font)-/.test(name) && value) root.style.setProperty(name, value);
  }
}

/** Shows a button that asks for the whole screen, where the host has one to give. */
function offerFullScreen(host) {
  const { availableDisplayModes = [], displayMode = "inline" } = host.context;
  const button = document.getElementById("enlarge");
  button.hidden = displayMode !== "inline" || !availableDisplayModes.includes("fullscreen");
  button.onclick = async () => {
    const { mode } = await host.request("ui/request-display-mode", { mode: "fullscreen" });
    host.context.displayMode = mode;
    offerFullScreen(host);
  };
}

async function fromServer(parameters) {
  const headers = { "content-type": "application/json" };
  const reply = await fetch("read_run", { method: "POST", headers, body: JSON.stringify(parameters) });
  if (!reply.ok) throw new Error(`the server answers ${reply.status}`);
  return structured(await reply.json());
}

function fromPage() {
  const { answer, parts } = JSON.parse(document.getElementById("run").textContent);
  for (const { rows, texts } of Object.values(parts))
    for (const row of rows) row.forEach((cell, at) => Number.isInteger(cell?.text) && (row[at] = texts[cell.text]));
  return async ({ part, where = {}, columns, offset = 0, limit = 20 }) => {
    if (part === "answer") return answer;
    if (!(part in parts)) throw new Error(`this file holds no ${part}`);
    const whole = parts[part];
    const tests = Object.entries(where).map(([name, wanted]) => [whole.columns.indexOf(name), [wanted].flat()]);
    const chosen = whole.rows.filter((row) => tests.every(([place, wanted]) => wanted.includes(row[place])));
    const names = columns ?? whole.columns;
    const places = names.map((name) => whole.columns.indexOf(name));
    const rows = chosen.slice(offset, offset + limit).map((row) => places.map((place) => row[place]));
    return { table: { columns: names, rows }, total: chosen.length };
  };
}
