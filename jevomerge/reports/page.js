// What one does with a page: charts (Vega-Lite), tables to sort, commands to copy; and, of a live page, what is new.
"use strict";
(() => {
  const views = new Map(); // by the element's id: {spec, view, element}
  const tip = Object.assign(document.createElement("dl"), { id: "tip", hidden: true });
  document.body.append(tip);

  const columns = (width) => Math.max(1, Math.floor((width - 60) / 148)); // of a legend

  const config = (width) => ({
    background: null,
    autosize: { type: "fit-x", contains: "padding" },
    font: getComputedStyle(document.body).fontFamily, // by name, for Vega measures texts
    view: { stroke: null },
    mark: { aria: false }, // a chart is one picture with one label; what is in it is in the tables beneath, too
    axis: { labelColor: "var(--muted)", titleColor: "var(--muted)", gridColor: "var(--faint)", domainColor: "var(--line)",
      tickColor: "var(--line)", labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal", labelLimit: 0.45 * width },
    axisY: { domain: false, ticks: false, labelPadding: 6 },
    legend: { orient: "top", columns: columns(width), labelColor: "var(--ink)", titleColor: "var(--muted)",
      titleFontWeight: "normal", labelFontSize: 12, symbolOpacity: 1, symbolStrokeWidth: 2, gradientLength: 140,
      labelLimit: Math.min(220, (width - 60) / columns(width) - 25), offset: 8 },
    scale: { bandPaddingInner: 0, bandPaddingOuter: 0 },
  });

  function hover(_, event, item, value) {
    tip.hidden = !value;
    if (!value) return;
    tip.replaceChildren(...Object.entries(value).flatMap(([name, text]) => [text_("dt", name), text_("dd", text)]));
    const place = (at, size, room) => Math.max(4, at + 14 + size > room ? at - 14 - size : at + 14);
    tip.style.left = `${place(event.clientX, tip.offsetWidth, innerWidth)}px`;
    tip.style.top = `${place(event.clientY, tip.offsetHeight, innerHeight)}px`;
  }

  function text_(tag, text) {
    return Object.assign(document.createElement(tag), { textContent: text });
  }

  function feed(view, datasets) {
    for (const [name, rows] of Object.entries(datasets)) view.data(name, rows);
    return view;
  }

  async function draw(element) {
    const { datasets, ...spec } = JSON.parse(element.querySelector("script").textContent);
    const known = views.get(element.id), text = JSON.stringify(spec);
    if (known && known.text === text) { // the same chart with more in it: it keeps what one has zoomed and chosen
      element.replaceWith(known.element);
      await feed(known.view, datasets).runAsync();
      return numbers(known.element);
    }
    if (known) known.view.finalize();
    const box = document.createElement("div"), controls = document.createElement("div");
    element.append(controls, box);
    const logger = vega.logger(vega.Error); // it warns of every chart that is as wide as its container
    const made = vegaLite.compile(spec, { config: config(element.clientWidth), logger }).spec;
    const view = new vega.View(vega.parse(made), { renderer: "svg", hover: true }).tooltip(hover);
    views.set(element.id, { text, view, element, columns: spec.usermeta.columns });
    await feed(view.initialize(box, controls), datasets).runAsync();
    numbers(element);
  }

  function numbers(element) { // what one can hover over, as tables, made when they are asked for
    const details = document.createElement("details"), summary = text_("summary", "Numbers");
    details.dataset.of = element.id;
    summary.setAttribute("aria-label", `Numbers: ${JSON.parse(element.querySelector("script").textContent).description}`);
    details.append(summary);
    details.ontoggle = () => {
      if (!details.open || details.children.length > 1) return;
      const { view, columns } = views.get(element.id);
      for (const [name, shown] of Object.entries(columns)) {
        const rows = view.data(name);
        if (!rows.length) continue;
        const box = Object.assign(document.createElement("div"), { className: "scroll short" });
        box.append(tabled(name, shown, rows));
        details.append(box);
        reachable(box);
      }
    };
    element.after(details);
  }

  function tabled(name, columns, rows) {
    const table = document.createElement("table"), kind = (field) => (typeof rows[0][field] === "number" ? "n" : "");
    const text = (value, format = "") => (value === null || value === undefined ? "–"
      : format.endsWith("f") ? value.toFixed(+format.slice(1, -1)) : String(value));
    const cell = (row, tag, field, content) => row.append(Object.assign(text_(tag, content), { className: kind(field) }));
    table.append(text_("caption", name));
    const head = table.createTHead().insertRow(), body = table.createTBody();
    for (const { field, title } of columns) cell(head, "th", field, title);
    for (const values of rows) {
      const row = body.insertRow();
      for (const { field, format } of columns) cell(row, "td", field, text(values[field], format));
    }
    sortable(table);
    return table;
  }

  const number = (text) => parseFloat(text.replace("−", "-").replace(/\u202f/g, ""));

  function sort(table, column, descending) {
    const rows = [...table.tBodies[0].rows], sign = descending ? -1 : 1;
    const numeric = table.tHead.rows[0].cells[column].classList.contains("n");
    const key = (row) => row.cells[column].textContent.trim();
    const compare = numeric
      ? (a, b) => { const [x, y] = [number(key(a)), number(key(b))]; return isNaN(x) - isNaN(y) || sign * (x - y); }
      : (a, b) => sign * key(a).localeCompare(key(b));
    table.tBodies[0].append(...rows.sort(compare));
    [...table.tHead.rows[0].cells].forEach((th, i) => {
      if (i === column) th.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
  }

  function sortable(table) {
    [...table.tHead.rows[0].cells].forEach((th, column) => {
      const button = Object.assign(document.createElement("button"), { type: "button" });
      button.append(...th.childNodes);
      th.append(button);
      const first = th.classList.contains("n"); // of numbers one wants the largest
      button.onclick = () => {
        const now = th.getAttribute("aria-sort");
        sort(table, column, now ? now === "ascending" : first);
      };
    });
  }

  function copyable(code) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "copy", textContent: "copy" });
    button.setAttribute("aria-label", `copy ${code.textContent}`);
    button.onclick = async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "copied";
      } catch { // it is not allowed to: marked, Ctrl-C does it
        getSelection().selectAllChildren(code);
      }
      setTimeout(() => (button.textContent = "copy"), 1500);
    };
    code.before(button);
  }

  function reachable(box) { // what scrolls, by keyboard too
    if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
  }

  async function enliven() {
    document.querySelectorAll("table.sortable").forEach(sortable);
    document.querySelectorAll("code.command").forEach(copyable);
    for (const element of document.querySelectorAll(".chart")) await draw(element);
    document.querySelectorAll(".scroll, pre, .text, .text div").forEach(reachable);
    for (const [id, { view }] of views) if (!document.getElementById(id)) { view.finalize(); views.delete(id); }
  }

  async function show(page) {
    const opened = (root) => [...root.querySelectorAll("details")]
      .map((d) => [d.dataset.of ?? d.firstElementChild.textContent.split(":")[0], d]);
    const were = new Map(opened(document).map(([name, d]) => [name, d.open]));
    const sorted = [...document.querySelectorAll("table.sortable")].map((table) => {
      const column = [...table.tHead.rows[0].cells].findIndex((th) => th.hasAttribute("aria-sort"));
      return [table.id, column, column >= 0 && table.tHead.rows[0].cells[column].getAttribute("aria-sort") === "descending"];
    });
    for (const part of ["nav", "main"]) {
      const [old, fresh] = [document.querySelector(part), page.querySelector(part)];
      if (old && fresh) old.replaceWith(fresh);
    }
    const reopen = () => { for (const [name, d] of opened(document)) if (were.has(name)) d.open = were.get(name); };
    reopen();
    await enliven();
    reopen(); // what is made by scripts
    for (const [id, column, descending] of sorted) {
      const table = document.getElementById(id);
      if (table && column >= 0) sort(table, column, descending);
    }
  }

  async function follow(tag, state) {
    try {
      const answer = await fetch(location.pathname, { headers: { "If-None-Match": tag }, cache: "no-store" });
      state.textContent = answer.ok || answer.status === 304 ? "" : await answer.text();
      if (answer.status === 200) {
        await show(new DOMParser().parseFromString(await answer.text(), "text/html"));
        tag = answer.headers.get("ETag");
      }
    } catch {
      state.textContent = "Nobody serves this page any more; it is as it was last.";
    }
    state.hidden = !state.textContent;
    setTimeout(follow, 2000, tag, state);
  }

  enliven();
  if ("live" in document.body.dataset) {
    const state = Object.assign(document.createElement("p"), { className: "note", hidden: true });
    state.setAttribute("role", "status");
    document.body.prepend(state);
    follow(document.body.dataset.live, state);
  }
})();
