"use strict";
// All rows are in the page: this hides those that do not match, and keeps the choice in the
// address (#writeup=ring&method=holds); with #<id> of a claim or a finding it shows and opens it.
const form = document.getElementById("filter");
const FIELDS = [
  "writeup", "as_published", "method", "consistency", "sort", "headline", "mechanism", "text",
];
const claims = [...document.querySelectorAll(".claim")];
const words = new Map(claims.map((claim) => [claim, claim.textContent.toLowerCase()]));

function chosen() {
  return Object.fromEntries(
    FIELDS.map((name) => [name, form.elements[name].value.trim()]).filter(([, value]) => value),
  );
}

function show() {
  const { text = "", ...exact } = chosen();
  const parts = text.toLowerCase().split(/\s+/);
  let count = 0;
  for (const claim of claims) {
    const fits = Object.entries(exact).every(([name, value]) => claim.dataset[name] === value)
      && parts.every((part) => words.get(claim).includes(part));
    claim.hidden = !fits;
    count += fits;
  }
  document.getElementById("shown").textContent = `${count} of ${claims.length} entries`;
}

function choose(values) {
  for (const name of FIELDS) form.elements[name].value = values[name] ?? "";
  show();
}

function follow() {
  const hash = decodeURIComponent(location.hash.slice(1));
  const claim = claims.find((one) => one.id === hash);
  const finding = document.getElementById(hash);
  if (finding instanceof HTMLDetailsElement) {
    finding.open = true;
    finding.scrollIntoView();
    choose({});
  } else if (claim) {
    choose({});
    claim.firstElementChild.open = true;
    claim.scrollIntoView();
  } else {
    choose(Object.fromEntries(new URLSearchParams(hash)));
  }
}

form.addEventListener("input", () => {
  show();
  history.replaceState(null, "", `#${new URLSearchParams(chosen())}`);
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", (event) => {
  event.preventDefault();
  location.hash = "";
  choose({});
});
for (const button of document.querySelectorAll("button[data-writeup]")) {
  button.addEventListener("click", () => {
    location.hash = new URLSearchParams({ ...button.dataset });
  });
}
addEventListener("hashchange", follow);
form.hidden = false;
follow();
