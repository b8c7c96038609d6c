// Opens cells of the grids. Every string of a run enters the page as text and never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const heading = document.getElementById("detail-title");
  const body = document.getElementById("detail-body");
  const status = document.getElementById("status");
  let chosen = null;

  function element(tag, text, className) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function verdict(cell) {
    return element("span", cell.correct ? "✓ right" : "✗ wrong", cell.correct ? "right" : "wrong");
  }

  function number(value) {
    return value === null ? "-inf" : value.toFixed(3);
  }

  function tokens(cell) {
    const probabilities = cell.logprobs || [];
    if (!probabilities.length) return element("span", "not logged");
    const whole = element("span", undefined, "tokens");
    const sum = probabilities.includes(null) ? null : probabilities.reduce((a, b) => a + b, 0);
    whole.append(`sum ${number(sum)}`);
    probabilities.forEach((value, at) => {
      const wanted = (cell.answerIds || [])[at];
      const got = (cell.predictedIds || [])[at];
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
    line.append(head);
    const cell = line.insertCell();
    if (typeof content === "string") {
      cell.textContent = content;
      cell.className = "answer";
    } else {
      cell.append(content);
    }
  }

  function needlesOf(frames, depth, unit) {
    const found = new Map();
    data.runs.forEach((run, index) => {
      if (run.aggregate || run.unit !== unit) return;
      for (const cell of run.cells[`${frames}/${depth}`] || []) {
        if (!found.has(cell.needle)) found.set(cell.needle, []);
        found.get(cell.needle).push([index, cell]);
      }
    });
    return found;
  }

  function place(cell, frames, unit) {
    if (cell.index === undefined || unit !== "frames") return "";
    return `frame ${cell.index + 1} of ${frames + 1}`;
  }

  function needleCard(needle, scored, frames, depth) {
    const card = element("article", undefined, "needle");
    card.append(element("h3", `Needle ${needle}`));
    const shown = element("div", undefined, "shown");
    const words = element("div");
    const [first, cell] = scored[0];
    const pictured = scored.find(([index]) => needle in data.runs[index].pictures);
    if (pictured && depth !== "control") {
      const image = element("img");
      image.src = data.images[data.runs[pictured[0]].pictures[needle]];
      image.alt = `The frame of needle ${needle}`;
      shown.append(image);
    }
    const where = place(cell, frames, data.runs[first].unit);
    if (where) words.append(element("p", `${where}`));
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
      if (depth !== "control") {
        const controls = run.cells[`${frames}/control`] || [];
        // Text NIAH draws a new number in every cell and has one control a length.
        const control = controls.find((other) => other.needle === needle) ?? (controls.length === 1 ? controls[0] : null);
        const told = element("span");
        if (control) told.append(verdict(control), ` ${control.predicted ?? ""}`);
        if (control && control.needle !== needle) told.append(` (asked for ${control.needle})`);
        if (!control) told.textContent = "not scored";
        row(table, run.control, told);
      }
      card.append(table);
    }
    return card;
  }

  function show(cell) {
    const [frames, depth] = cell.dataset.place.split("/");
    const run = data.runs[Number(cell.closest("table").dataset.run)];
    if (chosen) chosen.setAttribute("aria-selected", "false");
    chosen = cell;
    cell.setAttribute("aria-selected", "true");
    const where = depth === "control" ? "no needle" : `depth ${depth} %`;
    heading.textContent = `${Number(frames).toLocaleString("en")} ${run.unit}, ${where}`;
    body.replaceChildren();
    const scores = element("ul");
    for (const other of data.runs) {
      const cells = other.cells[cell.dataset.place] || [];
      const right = cells.filter((one) => one.correct).length;
      let line = cells.length ? `${other.name}: ${right} of ${cells.length} right` : `${other.name}: not scored`;
      if (cells.length && other.aggregate) line += " (only the mean is known, not which needles)";
      if (other.unit === run.unit) scores.append(element("li", line));
    }
    body.append(scores);
    const cards = element("div", undefined, "needles");
    for (const [needle, scored] of needlesOf(frames, depth, run.unit)) {
      cards.append(needleCard(needle, scored, Number(frames), depth));
    }
    body.append(cards);
    heading.scrollIntoView({ block: "nearest" });
    status.textContent = `${run.name}: ${cell.getAttribute("aria-label")}. ${cards.children.length} needles below.`;
  }

  function focusCell(grid, cell) {
    for (const other of grid.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    cell.tabIndex = 0;
    cell.focus();
  }

  function target(cells, at, width, key, ctrl) {
    const column = at % width;
    const last = cells.length - 1;
    switch (key) {
      case "ArrowRight": return column + 1 < width ? at + 1 : at;
      case "ArrowLeft": return column > 0 ? at - 1 : at;
      case "ArrowDown": return at + width <= last ? at + width : at;
      case "ArrowUp": return at - width >= 0 ? at - width : at;
      case "Home": return ctrl ? 0 : at - column;
      case "End": return ctrl ? last : at - column + width - 1;
      case "PageUp": return column;
      case "PageDown": return last - width + 1 + column;
      default: return null;
    }
  }

  for (const grid of document.querySelectorAll('table[role="grid"]')) {
    const cells = [...grid.querySelectorAll('td[role="gridcell"]')];
    const width = grid.tHead.rows[0].cells.length - 1;
    // Holes can be walked over, so that rows and columns stay in step, but do not open.
    for (const cell of cells) cell.tabIndex = -1;
    if (cells.length) cells[0].tabIndex = 0;
    grid.addEventListener("click", (event) => {
      const cell = event.target.closest("td[data-place]");
      if (!cell) return;
      focusCell(grid, cell);
      show(cell);
    });
    grid.addEventListener("keydown", (event) => {
      const at = cells.indexOf(event.target);
      if (at < 0 || event.altKey || event.metaKey) return;
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        if (!cells[at].dataset.place) return;
        show(cells[at]);
        heading.focus();
        return;
      }
      const next = target(cells, at, width, event.key, event.ctrlKey);
      if (next === null) return;
      event.preventDefault();
      focusCell(grid, cells[next]);
    });
  }

  document.getElementById("detail").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && chosen) chosen.focus();
  });
})();
