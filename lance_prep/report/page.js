"use strict";
(() => {
  const rows = JSON.parse(document.getElementById("rows").textContent);
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;

  byId("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  if (!rows.length) return;

  let at = 0;
  let wanted = "";
  let withIds = false;
  const source = byId("source"); // of a collection

  const documentLine = (row, place) => {
    const line = document.createElement("span");
    line.className = "document";
    line.textContent = `document from shard ${place[1]}, source row ${place[2]}`;
    return line;
  };

  /* Text is set as text, never as markup. */
  const show = (index) => {
    at = Math.max(0, Math.min(rows.length - 1, index));
    const row = rows[at];
    const box = byId("tokens");
    box.replaceChildren();
    let next = 0;
    let character = 0;
    const text = row.pieces.map((piece) => piece[0]).join("");
    const found = wanted ? text.toLowerCase().indexOf(wanted.toLowerCase()) : -1;
    row.pieces.forEach(([piece, ids, learned], i) => {
      if (next < row.documents.length && row.documents[next][0] === i) box.append(documentLine(row, row.documents[next++]));
      const token = document.createElement("span");
      token.className = `c${i % 6}${learned ? " learned" : ""}`;
      if (found >= 0 && character < found + wanted.length && character + piece.length > found) token.className += " found";
      token.textContent = piece;
      token.title = `id ${ids.join(", ")}${learned === null ? "" : learned ? ", learned" : ", not learned"}`;
      box.append(token);
      if (withIds) {
        const id = document.createElement("small");
        id.textContent = `${ids.join(",")} `;
        box.append(id);
      }
      character += piece.length;
    });
    if (row.cut) box.append(document.createTextNode(" …"));
    byId("which").textContent =
      `${row.dataset ? row.dataset + ": " : ""}row ${row.row.toLocaleString("en")}, ` +
      `${row.num_tokens.toLocaleString("en")} tokens (${at + 1} of ${rows.length} in the sample)`;
    byId("columns").textContent = Object.entries(row.columns).map(([name, value]) => `${name}: ${value}`).join("\n");
    byId("previous").disabled = at === 0;
    byId("next").disabled = at === rows.length - 1;
    byId("jump").value = row.row;
    if (source) source.value = row.dataset;
    const first = box.querySelector(".found");
    if (first) first.scrollIntoView({ block: "nearest" });
    else box.scrollTop = 0;
  };

  const search = (from) => {
    wanted = byId("search").value;
    if (!wanted) { byId("answer").textContent = ""; show(at); return; }
    const low = wanted.toLowerCase();
    const has = rows.map((row) => row.pieces.map((piece) => piece[0]).join("").toLowerCase().includes(low));
    const many = has.filter(Boolean).length;
    byId("answer").textContent = many ? `${many} of ${rows.length} rows of the sample` : "in no row of the sample";
    for (let i = 0; i < rows.length; i++) {
      const index = (from + i) % rows.length;
      if (has[index]) { show(index); return; }
    }
    show(at);
  };

  byId("previous").addEventListener("click", () => show(at - 1));
  byId("next").addEventListener("click", () => show(at + 1));
  byId("ids").addEventListener("click", () => {
    withIds = !withIds;
    byId("ids").setAttribute("aria-pressed", String(withIds));
    show(at);
  });
  byId("search").addEventListener("input", () => search(at));
  byId("search").addEventListener("keydown", (event) => { if (event.key === "Enter") search(at + 1); });
  byId("jump").addEventListener("change", () => {
    const number = Number(byId("jump").value);
    let best = at;
    rows.forEach((row, i) => {
      if (row.dataset === rows[at].dataset && Math.abs(row.row - number) < Math.abs(rows[best].row - number)) best = i;
    });
    byId("answer").textContent = rows[best].row === number ? "" : `row ${number} is not in the sample; this is the nearest`;
    show(best);
  });
  if (source) source.addEventListener("change", () => show(rows.findIndex((row) => row.dataset === source.value)));
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowLeft") show(at - 1);
    if (event.key === "ArrowRight") show(at + 1);
  });
  show(0);
})();
