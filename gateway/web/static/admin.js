// What makes the staff's site quicker by keyboard. Every page does all of its work without this file.
"use strict";

const SHORTCUTS = [
  ["/", "to the first field of the filter"],
  ["j", "next row"],
  ["k", "row before"],
  ["Enter", "open the row"],
  ["x", "tick the row"],
  ["g", "to the navigation"],
  ["?", "this list"],
];

const typing = (target) => target.closest("input, select, textarea, [contenteditable]") !== null;
const rows = () => [...document.querySelectorAll("main tbody tr")].filter((row) => row.querySelector("a"));

function go(step) {
  const all = rows();
  if (!all.length) return;
  const at = all.findIndex((row) => row.contains(document.activeElement));
  const next = at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + step, 0), all.length - 1);
  all[next].querySelector("a").focus();
  all[next].scrollIntoView({ block: "nearest" });
}

function explain() {
  let dialog = document.querySelector("#shortcuts");
  if (!dialog) {
    dialog = document.createElement("dialog");
    dialog.id = "shortcuts";
    dialog.setAttribute("aria-labelledby", "shortcuts-title");
    const title = Object.assign(document.createElement("h2"), { id: "shortcuts-title", textContent: "Keyboard" });
    const list = document.createElement("dl");
    for (const [key, does] of SHORTCUTS) {
      const pair = document.createElement("div");
      const term = document.createElement("dt");
      term.append(Object.assign(document.createElement("kbd"), { textContent: key }));
      pair.append(term, Object.assign(document.createElement("dd"), { textContent: does }));
      list.append(pair);
    }
    const close = Object.assign(document.createElement("button"), { textContent: "Close", className: "second" });
    close.addEventListener("click", () => dialog.close());
    dialog.append(title, list, close);
    document.body.append(dialog);
  }
  dialog.showModal();
}

const KEYS = {
  "/": () => document.querySelector(".filters input:not([type=hidden]), .filters select")?.focus(),
  j: () => go(1),
  k: () => go(-1),
  x: () => document.activeElement.closest("tr")?.querySelector("[type=checkbox]")?.click(),
  g: () => document.querySelector(".menu nav a")?.focus(),
  "?": explain,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  if (document.querySelector("dialog[open]") || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});

// A row leads where its first link leads; what is selected or pressed in it stays so.
document.addEventListener("click", (event) => {
  if (event.defaultPrevented || event.button !== 0) return;
  const row = event.target.closest("main tbody tr");
  if (!row || event.target.closest("a, button, input, label, summary") || String(getSelection())) return;
  row.querySelector("a")?.click();
});

// All that a list offers to tick, at once.
const ticks = () => document.querySelectorAll("main tbody input[type=checkbox]");
if (ticks().length) {
  const all = Object.assign(document.createElement("button"), { type: "button", className: "second", textContent: "Tick all" });
  all.addEventListener("click", () => ticks().forEach((one) => (one.checked = true)));
  document.querySelector("#settle .does")?.append(all);
}

// Several files are brought one after the other, each as if it were the only one; the form says what came of each.
for (const input of document.querySelectorAll("form[enctype] input[type=file]")) {
  input.multiple = true;
  input.closest(".field").querySelector(".hint")?.append("; several at once, too");
  input.form.addEventListener("submit", (event) => {
    if (input.files.length < 2) return;
    event.preventDefault();
    event.stopPropagation();
    bringAll(input);
  });
}

async function bringAll(input) {
  const button = input.form.querySelector("button");
  const list = document.createElement("ul");
  const told = Object.assign(document.createElement("div"), { className: "brought" });
  told.setAttribute("role", "status");
  told.append(list);
  input.form.querySelector(".brought")?.remove();
  input.form.append(told);
  button.disabled = true;
  for (const file of input.files) {
    const line = document.createElement("li");
    line.append(`${file.name}: `, "on its way");
    list.append(line);
    const [said, taken, url] = await bring(input, file).catch(() => ["the connection broke: bring it again", false, ""]);
    const result = url ? Object.assign(document.createElement("a"), { href: url, textContent: said }) : said;
    line.replaceChildren(`${file.name}: `, result);
    line.className = taken ? "" : "minus";
  }
  button.disabled = false;
  const [page] = await load(location.href);
  const below = (root) => root.querySelector("form[enctype]").closest(".card").nextElementSibling;
  below(document).replaceWith(below(page));
}

async function bring(input, file) {
  const body = new FormData();
  for (const name of ["csrf", "format"]) body.append(name, input.form.elements[name].value);
  body.append("file", file);
  let [page, url] = await load(input.form.action, { method: "POST", body });
  while (page.querySelector("progress")) {
    await new Promise((resolve) => setTimeout(resolve, 500));
    [page, url] = await load(url);
  }
  const notice = page.querySelector(".notice");
  const said = notice ?? page.querySelector("#refused") ?? page.querySelector("main p");
  const taken = notice !== null && !url.includes("/sign-in");
  return [said.textContent, taken, taken ? url : ""];
}

async function load(address, options) {
  const answer = await fetch(address, options);
  return [new DOMParser().parseFromString(await answer.text(), "text/html"), answer.url];
}

// A form is sent once, however often its button is pressed; after a while, or when a download kept the page, again.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  if (form.dataset.sent) return event.preventDefault();
  form.dataset.sent = "yes";
  event.submitter?.setAttribute("aria-busy", "true");
  setTimeout(refresh, 8000, form);
});

function refresh(form) {
  delete form.dataset.sent;
  form.querySelectorAll("[aria-busy]").forEach((one) => one.removeAttribute("aria-busy"));
}
addEventListener("pageshow", () => document.querySelectorAll("form[data-sent]").forEach(refresh));
