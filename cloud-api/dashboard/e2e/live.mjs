// Logs in and waits until the page shows everything live for every wearer.
// node e2e/live.mjs --url URL --email E --password P --expect-wearers N [--timeout-s 20] [--screenshot FILE]
import { Failure, login, main, number, options } from './browser.mjs';

/** What the roster shows now, wearer by wearer; runs in the page. */
function observe() {
  const seconds = 15;
  const metric = (tile, type) => {
    const element = tile.querySelector(`[data-testid="live-${type}"]`);
    const time = Number(element?.dataset.timeMs);
    const shown = element?.textContent?.trim() ?? '';
    return /^-?[\d,]+\.\d$/.test(shown) && Date.now() - time < seconds * 1000 ? shown : null;
  };
  const tiles = [...document.querySelectorAll('[data-testid="wearer-tile"]')].map((tile) => {
    const battery = tile.querySelector('[data-testid="device-battery"]')?.dataset.percent;
    const link = tile.querySelector('[data-testid="device-link"]')?.dataset.connected;
    return {
      user: tile.dataset.user,
      name: tile.querySelector('h2')?.textContent ?? '',
      heart_rate: metric(tile, 'heart_rate'),
      skin_temperature: metric(tile, 'skin_temperature'),
      eda: metric(tile, 'eda'),
      battery: battery === undefined ? null : Number(battery),
      link: link === 'true' ? true : null,
    };
  });
  const gateways = [...document.querySelectorAll('[data-testid="gateway-buffer"]')]
    .map((g) => ({ gateway: g.dataset.gateway, frames: g.dataset.frames === undefined ? null : Number(g.dataset.frames) }));
  const events = document.querySelectorAll('[data-testid="event-row"]').length;
  return { tiles, gateways, events };
}

/** Every sparkline has a line; in the first moments the last minutes are still being fetched. Runs in the page. */
function drawn() {
  return [...document.querySelectorAll('[data-testid="wearer-tile"] svg.spark')].every((spark) => spark.querySelector('path'));
}

const PARTS = ['heart_rate', 'skin_temperature', 'eda', 'battery', 'link'];

function missing({ tiles, gateways }, expected) {
  const out = [];
  if (tiles.length !== expected) out.push(`${tiles.length} wearers instead of ${expected}`);
  for (const tile of tiles) {
    const lacks = PARTS.filter((part) => tile[part] === null);
    if (lacks.length > 0) out.push(`${tile.name}: no ${lacks.join(', ')}`);
  }
  if (gateways.length === 0) out.push('no gateway');
  if (gateways.length > 0 && gateways.every((g) => g.frames === null)) out.push('no gateway’s buffer');
  return out;
}

await main(
  () => options({ 'expect-wearers': { type: 'string', default: '1' }, 'timeout-s': { type: 'string', default: '20' }, screenshot: { type: 'string' } }),
  async (page, values, errors) => {
    const expected = number(values, 'expect-wearers');
    const timeoutMs = number(values, 'timeout-s') * 1000;
    const started = Date.now();
    const tenant = await login(page, values, timeoutMs);
    const entered = Date.now();
    let seen;
    let lacks;
    for (;;) {
      seen = await page.evaluate(observe);
      lacks = missing(seen, expected);
      if (lacks.length === 0 || Date.now() - started > timeoutMs) break;
      await page.waitForTimeout(100);
    }
    const elapsed = Date.now() - entered;
    if (values.screenshot && lacks.length === 0) await page.waitForFunction(drawn, null, { timeout: timeoutMs }).catch(() => undefined);
    if (values.screenshot) await page.screenshot({ path: values.screenshot, fullPage: true });
    if (errors.length > 0) throw new Failure(`the page threw: ${errors[0]}`);
    if (lacks.length > 0) throw new Failure(`after ${values['timeout-s']} s: ${lacks.join('; ')}`);
    console.log(
      JSON.stringify({
        ok: true,
        tenant,
        wearers: seen.tiles.length,
        names: seen.tiles.map((t) => t.name),
        gateways: seen.gateways.length,
        events: seen.events,
        login_to_live_ms: elapsed,
      }),
    );
  },
);
