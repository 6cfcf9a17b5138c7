// Keys, and asking whether there is more to see. Every page works without it.
"use strict";

const POLL = 3000; // milliseconds

function follow(relation) {
  const link = document.querySelector(`a[rel="${relation}"]`);
  if (link) link.click();
}

function step(selector, direction) {
  const rows = [...document.querySelectorAll(selector)];
  if (!rows.length) return;
  const now = rows.indexOf(document.activeElement);
  const next = now < 0 ? (direction > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, now + direction));
  rows[next].focus();
  rows[next].scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  const writes = event.target.closest && event.target.closest("input:not([type=checkbox]), select, textarea");
  if (writes || event.ctrlKey || event.metaKey || event.altKey) return;
  const table = document.body.dataset.rows === "groups";
  const keys = {
    j: () => (table ? step("a.row", 1) : follow("next")),
    k: () => (table ? step("a.row", -1) : follow("prev")),
    n: () => step(".completion", 1),
    p: () => step(".completion", -1),
    u: () => follow("up"),
    "/": () => { const box = document.getElementById("search"); if (box) { box.focus(); event.preventDefault(); } },
  };
  if (Object.hasOwn(keys, event.key)) keys[event.key]();
});

function tell() {
  const news = document.getElementById("news");
  if (!news.hidden) return;
  const again = document.createElement("a");
  again.href = location.href;
  again.textContent = "Show it";
  news.replaceChildren("There is more now. ", again);
  news.hidden = false;
}

async function renew() {
  const answer = await fetch(location.href);
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const opened = new Set([...document.querySelectorAll("details[open] > summary")].map((each) => each.textContent));
  const main = document.getElementById("main");
  main.replaceChildren(...page.getElementById("main").childNodes);
  for (const each of main.querySelectorAll("details > summary")) if (opened.has(each.textContent)) each.parentElement.open = true;
  document.body.dataset.version = page.body.dataset.version;
}

async function look() {
  const body = document.body;
  try {
    if (document.visibilityState === "visible") {
      const answer = await fetch(body.dataset.state);
      if (answer.ok && (await answer.json()).version !== body.dataset.version) {
        const busy = document.getElementById("main").contains(document.activeElement) && document.activeElement.id !== "main";
        if (body.dataset.live && !busy) await renew();
        else tell();
      }
    }
  } catch (error) {
    // The server was stopped; the page stays as it is.
  }
  setTimeout(look, POLL);
}

if (document.body.dataset.state) setTimeout(look, POLL / 3);
