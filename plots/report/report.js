// Opens cells of the grids. Every string of a run enters the page as text and never as markup.
"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("report-data").textContent);
  let chosen = null;

  function element(tag, content = "", className = "") {
    const made = document.createElement(tag);
    made.append(content);
    if (className) made.className = className;
    return made;
  }

  const verdict = (cell) => element("span", cell.correct ? "✓ right" : "✗ wrong", cell.correct ? "right" : "wrong");
  const number = (value) => (value === null ? "-inf" : value.toFixed(3));

  function tokens(cell) {
    const { logprobs = [], answerIds = [], predictedIds = [] } = cell;
    if (!logprobs.length) return element("span", "not logged");
    const sum = logprobs.includes(null) ? null : logprobs.reduce((a, b) => a + b, 0);
    const whole = element("span", `sum ${number(sum)}`, "tokens");
    logprobs.forEach((value, at) => {
      const [wanted, got] = [answerIds[at], predictedIds[at]];
      let line = number(value);
      if (wanted !== undefined) line += ` for id ${wanted}`;
      if (got !== undefined && got !== wanted) line += `, argmax ${got}`;
      whole.append(element("br"), line);
    });
    return whole;
  }

  function row(table, label, content) {
    const line = table.insertRow();
    const head = element("th", label);
    head.scope = "row";
    line.append(head, element("td", content, typeof content === "string" ? "answer" : ""));
  }

  // The cells of a place by needle, each with the number of its run.
  function needlesOf(place, unit) {
    const found = new Map();
    data.runs.forEach((run, index) => {
      if (run.aggregate || run.unit !== unit) return;
      for (const cell of run.cells[place] || []) {
        if (!found.has(cell.needle)) found.set(cell.needle, []);
        found.get(cell.needle).push([index, cell]);
      }
    });
    return found;
  }

  // What a run answered of a needle in a haystack of that length without it.
  function control(run, needle, frames) {
    const controls = run.cells[`${frames}/control`] || [];
    // Text NIAH draws a new number in every cell and has one control a length.
    const found = controls.find((other) => other.needle === needle) ?? (controls.length === 1 ? controls[0] : null);
    const told = element("span", found ? verdict(found) : "not scored");
    if (found) told.append(` ${found.predicted ?? ""}`);
    if (found && found.needle !== needle) told.append(` (asked for ${found.needle})`);
    return told;
  }

  function needleCard(needle, scored, frames, depth) {
    const card = element("article", element("h3", `Needle ${needle}`), "needle");
    const shown = element("div", "", "shown");
    const words = element("div");
    const [first, cell] = scored[0];
    const pictured = scored.find(([index]) => needle in data.runs[index].pictures);
    if (pictured && depth !== "control") {
      const image = element("img");
      image.src = data.images[data.runs[pictured[0]].pictures[needle]];
      image.alt = `The frame of needle ${needle}`;
      shown.append(image);
    }
    if (cell.index !== undefined && data.runs[first].unit === "frames") {
      words.append(element("p", `frame ${cell.index + 1} of ${frames + 1}`));
    }
    if (cell.question) words.append(element("p", cell.question, "question"));
    words.append(element("p", `Answer: ${cell.answer ?? ""}`));
    shown.append(words);
    card.append(shown);
    for (const [index, one] of scored) {
      const run = data.runs[index];
      const table = element("table");
      table.createCaption().textContent = run.name;
      row(table, depth === "control" ? "Without the needle" : "Verdict", verdict(one));
      row(table, "Prediction", one.predicted ?? "");
      row(table, "Log-probabilities", tokens(one));
      if (depth !== "control") row(table, run.control, control(run, needle, frames));
      card.append(table);
    }
    return card;
  }

  function show(cell) {
    const { place } = cell.dataset;
    const [frames, depth] = place.split("/");
    const run = data.runs[Number(cell.closest("table").dataset.run)];
    if (chosen) chosen.setAttribute("aria-selected", "false");
    chosen = cell;
    cell.setAttribute("aria-selected", "true");
    const where = depth === "control" ? "no needle" : `depth ${depth} %`;
    find("detail-title").textContent = `${Number(frames).toLocaleString("en")} ${run.unit}, ${where}`;
    const scores = element("ul");
    for (const other of data.runs.filter((one) => one.unit === run.unit)) {
      const cells = other.cells[place] || [];
      const right = cells.filter((one) => one.correct).length;
      let line = cells.length ? `${other.name}: ${right} of ${cells.length} right` : `${other.name}: not scored`;
      if (cells.length && other.aggregate) line += " (only the mean is known, not which needles)";
      scores.append(element("li", line));
    }
    const cards = element("div", "", "needles");
    for (const [needle, scored] of needlesOf(place, run.unit)) {
      cards.append(needleCard(needle, scored, Number(frames), depth));
    }
    find("detail-body").replaceChildren(scores, cards);
    find("detail-title").scrollIntoView({ block: "nearest" });
    find("status").textContent =
      `${run.name}: ${cell.getAttribute("aria-label")}. ${cards.children.length} needles below.`;
  }

  function focusCell(grid, cell) {
    for (const other of grid.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    cell.tabIndex = 0;
    cell.focus();
  }

  // Where a key leads from a cell, by their numbers; nowhere for other keys.
  function target(at, width, last, key, ctrl) {
    const column = at % width;
    return {
      ArrowRight: column + 1 < width ? at + 1 : at,
      ArrowLeft: column > 0 ? at - 1 : at,
      ArrowDown: at + width <= last ? at + width : at,
      ArrowUp: at - width >= 0 ? at - width : at,
      Home: ctrl ? 0 : at - column,
      End: ctrl ? last : at - column + width - 1,
      PageUp: column,
      PageDown: last - width + 1 + column,
    }[key];
  }

  for (const grid of document.querySelectorAll('table[role="grid"]')) {
    const cells = [...grid.querySelectorAll('td[role="gridcell"]')];
    const width = grid.tHead.rows[0].cells.length - 1;
    // Holes can be walked over, so that rows and columns stay in step, but do not open.
    cells.forEach((cell, at) => (cell.tabIndex = at ? -1 : 0));
    grid.addEventListener("click", (event) => {
      const cell = event.target.closest("td[data-place]");
      if (!cell) return;
      focusCell(grid, cell);
      show(cell);
    });
    grid.addEventListener("keydown", (event) => {
      const at = cells.indexOf(event.target);
      if (at < 0 || event.altKey || event.metaKey) return;
      const opens = event.key === "Enter" || event.key === " ";
      const next = target(at, width, cells.length - 1, event.key, event.ctrlKey);
      if (!opens && next === undefined) return;
      event.preventDefault();
      if (!opens) {
        focusCell(grid, cells[next]);
      } else if (cells[at].dataset.place) {
        show(cells[at]);
        find("detail-title").focus();
      }
    });
  }

  find("detail").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && chosen) chosen.focus();
  });
})();
