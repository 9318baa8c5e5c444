/** The page: the answer's words, the figure or the view of its tool, and all numbers of the run. */

import { element } from "./elements.js";
import { notesOf, panels } from "./figure.js";
import { Run } from "./run.js";
import { connect } from "./source.js";
import { allNumbers, table } from "./table.js";
import { views } from "./views.js";

const WAIT = 30;

const page = {
  title: document.getElementById("title"),
  finding: document.getElementById("finding"),
  notes: document.getElementById("notes"),
  stage: document.getElementById("stage"),
  status: document.getElementById("status"),
};
let turn = 0;

/** Shows an answer; one that comes later takes its place. */
async function show(answer, read) {
  const mine = ++turn;
  const run = answer.run_id ? new Run(answer.run_id, read) : null;
  introduce(answer, run);
  page.stage.replaceChildren();
  if (answer.state) return follow(run, mine, read);
  const body = element("div", { class: "view" });
  say("");
  if (run) await draw(run, body, mine);
  if (mine !== turn) return;
  if (!body.hasChildNodes()) body.append(...tables(answer));
  page.stage.replaceChildren(body, ...(run ? [allNumbers(run)] : []));
}

/** The view of the run's tool with the panels that it lacks, or the whole figure. */
async function draw(run, body, mine) {
  page.stage.append(body);
  say("Reading the run …");
  try {
    const figure = await run.figure();
    const view = views[run.tool];
    const covered = view ? await view(run, body, figure) : false; // true: its grid says what the figure's heatmaps say
    const drawn = figure.panels.filter(({ kind }) => !covered || kind !== "heatmap");
    if (drawn.length) body.append(panels(drawn), element("div", { class: "note" }, notesOf(figure.notes)));
    if (mine === turn) say("");
  } catch (error) {
    body.replaceChildren();
    if (mine === turn) say(`The run could not be read (${error.message}); this is its answer.`);
  }
}

/** The words of an answer, without those on how to read what it left out: here it is all to be seen. */
function introduce({ finding, notes = [], model }, run) {
  const tool = run?.tool.replaceAll("_", " ") ?? "nnterp";
  page.title.textContent = [tool, model].filter(Boolean).join(" · ");
  document.title = [tool, model, run?.id].filter(Boolean).join(" · ");
  page.finding.textContent = finding ?? "";
  const told = notes.filter((note) => !note.includes("read_run"));
  const id = run ? [element("p", { class: "run" }, `run ${run.id}`)] : [];
  page.notes.replaceChildren(...notesOf(told), ...id);
}

/** A call that goes on: waits for its run, and shows how it ends. */
async function follow(run, mine, read) {
  try {
    for (;;) {
      const answer = await read({ run_id: run.id, part: "answer", wait_seconds: WAIT });
      if (mine !== turn) return;
      if (!answer.state) return show(answer, read);
      introduce(answer, run);
      say(answer.progress ?? answer.state);
    }
  } catch (error) {
    say(error.message);
  }
}

/** The tables of an answer, as they are. */
function tables(answer) {
  const found = Object.entries(answer).filter(([, value]) => Array.isArray(value?.columns) && Array.isArray(value?.rows));
  return found.map(([name, content]) => table(content, name));
}

function say(message) {
  page.status.textContent = message;
}

let answered = null;
const read = connect((answer) => {
  answered = answer;
  read.then((ask) => answered === answer && show(answer, ask));
}, say);
read.catch((error) => say(error.message));
