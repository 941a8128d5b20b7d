// Renews a page that says it changes by itself, without the flicker of a reload. Without scripts the page reloads itself.
'use strict';

const seconds = Number(document.body.dataset.renewS);

/** Puts the page's present content in the place of what is shown, and keeps the focus where it was. */
async function renew() {
  const address = new URL(location.href);
  address.searchParams.set('auto', '1');
  const answer = await fetch(address, { credentials: 'same-origin', signal: AbortSignal.timeout(10_000) });
  const arrived = new URL(answer.url);
  if (arrived.pathname !== location.pathname) {
    location.assign(arrived.pathname + arrived.search);
    return false;
  }
  const next = new DOMParser().parseFromString(await answer.text(), 'text/html');
  const [shown, main] = [document.getElementById('main'), next.getElementById('main')];
  if (!shown || !main) return true;
  if (!next.body.dataset.renewS) {
    // There is something to do now.
    location.reload();
    return false;
  }
  if (shown.innerHTML !== main.innerHTML) {
    const focused = shown.contains(document.activeElement) ? document.activeElement : null;
    const [id, place] = [focused?.id, focused ? [...shown.querySelectorAll('a, button')].indexOf(focused) : -1];
    shown.replaceChildren(...main.childNodes);
    const again = id ? document.getElementById(id) : shown.querySelectorAll('a, button')[place];
    again?.focus({ preventScroll: true });
  }
  return true;
}

async function keepRenewing() {
  for (;;) {
    await new Promise((wake) => setTimeout(wake, seconds * 1000));
    if (document.hidden) continue;
    try {
      if (!(await renew())) return;
    } catch {
      // The box is away for a moment; what is shown stays.
    }
  }
}

if (seconds > 0) keepRenewing();
