// Tables that sort by a click on a column's head; an empty cell comes last either way.
"use strict";
(function () {
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.appendChild(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = row => {
          const cell = row.cells[column], given = cell.dataset.value;
          return given === undefined ? cell.textContent.trim() : given === "" ? null : Number(given);
        };
        const rows = [...body.rows].map((row, i) => [key(row), i, row]);
        rows.sort(([a, i], [b, j]) => {
          if (a === null || b === null) return (a === null) - (b === null) || i - j;
          const order = typeof a === "number" && typeof b === "number" ? a - b
            : String(a).localeCompare(String(b), "en", { numeric: true });
          return (up ? order : -order) || i - j;
        });
        body.append(...rows.map(([, , row]) => row));
      });
    });
  }
})();
