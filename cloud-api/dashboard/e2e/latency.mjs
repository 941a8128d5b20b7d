// Measures, on the real page, how old a sample is when it is painted.
// node e2e/latency.mjs --url URL --email E --password P [--seconds 60] [--warm-up-s 3]
import { Failure, login, main, number, options } from './browser.mjs';

/** Watches every live value; runs in the page. The age is taken once the change is painted. */
function watch() {
  const ages = [];
  let changed = [];
  let scheduled = false;
  const paint = () => {
    scheduled = false;
    // A message posted from a frame's callback is handled right after that frame is painted. Where the page changed
    // the value in an animation frame of its own, this is the frame after it: never early, at most one frame late.
    const { port1, port2 } = new MessageChannel();
    const elements = changed;
    changed = [];
    port1.onmessage = () => {
      const now = Date.now();
      for (const time of elements) ages.push(now - time);
      port1.close();
    };
    port2.postMessage(null);
  };
  const observer = new MutationObserver((records) => {
    for (const record of records) {
      const time = Number(record.target.dataset.timeMs);
      if (Number.isFinite(time) && record.target.dataset.timeMs !== record.oldValue) changed.push(time);
    }
    if (!scheduled && changed.length > 0) {
      scheduled = true;
      requestAnimationFrame(paint);
    }
  });
  observer.observe(document.body, { subtree: true, attributes: true, attributeFilter: ['data-time-ms'], attributeOldValue: true });
  return new Promise((resolve) => {
    window.__kinaraStopWatching = () => {
      observer.disconnect();
      resolve(ages);
    };
  });
}

function percentile(sorted, p) {
  return sorted[Math.min(sorted.length - 1, Math.ceil(p * sorted.length) - 1)];
}

await main(
  () => options({ seconds: { type: 'string', default: '60' }, 'warm-up-s': { type: 'string', default: '3' } }),
  async (page, values, errors) => {
    const seconds = number(values, 'seconds');
    await login(page, values, 20_000);
    // The first values are the server's snapshot, as old as they happen to be: not what is measured.
    await page.locator('[data-testid="live-heart_rate"][data-time-ms]').first().waitFor({ timeout: 20_000 }).catch(() => {
      throw new Failure('no live heart rate within 20 s');
    });
    await page.waitForTimeout(number(values, 'warm-up-s') * 1000);
    const watching = page.evaluate(watch);
    await page.waitForTimeout(seconds * 1000);
    await page.evaluate(() => window.__kinaraStopWatching());
    const ages = (await watching).sort((a, b) => a - b);
    if (errors.length > 0) throw new Failure(`the page threw: ${errors[0]}`);
    if (ages.length === 0) throw new Failure(`no live value changed in ${seconds} s`);
    console.log(
      JSON.stringify({
        samples: ages.length,
        p50_ms: percentile(ages, 0.5),
        p95_ms: percentile(ages, 0.95),
        max_ms: ages[ages.length - 1],
      }),
    );
  },
);
