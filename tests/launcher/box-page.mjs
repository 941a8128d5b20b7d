// Drives the box's own page in Chromium; see ./box-page. Prints one line of JSON, or what did not hold.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createConnection } from 'node:net';
import { connect } from 'node:tls';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

const require = createRequire(new URL('../../cloud-api/dashboard/package.json', import.meta.url));
const { chromium } = require('playwright-core');

const { values: args } = parseArgs({
  options: { url: { type: 'string' }, work: { type: 'string' }, label: { type: 'string' }, pictures: { type: 'string' } },
});
const PATIENCE_MS = 30_000;
/** From the window's opening to the first live value. */
const LIVE_WITHIN_MS = 60_000;
const CODES = { 'K-3F21': 'KINARALABELTEST2', 'K-3F22': 'KINARALABELTEST3' };
const PIN = '274913';

class Failure extends Error {}

function check(holds, what) {
  if (!holds) throw new Failure(what);
}

function press(wearable) {
  return new Promise((pressed, failed) => {
    const socket = createConnection(join(args.work, 'air', `00000000000000a${wearable}.ctl`));
    socket.on('connect', () => socket.write('{"do":"button"}\n'));
    socket.on('data', () => {
      socket.end();
      pressed();
    });
    socket.on('error', failed);
  });
}

/** The fingerprint of what the box really shows to TLS. */
function certificate() {
  const { hostname, port } = new URL(args.url);
  return new Promise((known, failed) => {
    const socket = connect({ host: hostname, port: Number(port), rejectUnauthorized: false }, () => {
      known(socket.getPeerCertificate().fingerprint256);
      socket.end();
    });
    socket.on('error', failed);
  });
}

/** What a person with a thumb, a keyboard or poor eyes would stumble over. Runs in the page. */
function stumbling() {
  const out = [];
  const rgb = (text) => (text.match(/[\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) =>
    [r, g, b]
      .map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4))
      .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const back = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const shown = (element) => element.getClientRects().length > 0 && element.type !== 'hidden';
  for (const target of document.querySelectorAll('button, a.button, nav a, a.near, a.device, select, input, summary')) {
    if (!shown(target)) continue;
    const box = (target.closest('label') ?? target).getBoundingClientRect();
    if (box.height < 44 || box.width < 44) out.push(`${target.outerHTML.slice(0, 80)} is ${box.width}x${box.height}`);
  }
  for (const field of document.querySelectorAll('input, select')) {
    if (shown(field) && field.labels.length === 0) out.push(`${field.outerHTML.slice(0, 80)} has no label`);
  }
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !shown(element) || element.closest('script, noscript, .skip, option')) continue;
    const [a, b] = [light(rgb(getComputedStyle(element).color)), light(back(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) out.push(`"${node.data.trim().slice(0, 40)}" has contrast ${contrast.toFixed(1)}`);
  }
  if (document.querySelectorAll('h1').length !== 1) out.push('not one h1');
  if (document.documentElement.scrollWidth > innerWidth) out.push(`${document.documentElement.scrollWidth} px wide`);
  return out;
}

let shots = 0;
async function look(page, name) {
  // A page that is still arriving has no style yet.
  await page.waitForLoadState('load');
  const found = await page.evaluate(stumbling);
  await page.screenshot({ path: join(args.pictures, `box-${String(++shots).padStart(2, '0')}-${name}.png`), fullPage: true });
  check(found.length === 0, `${name}: ${found.join('; ')}`);
}

const submit = (page, action) => page.locator(`form[action="${action}"] button[type="submit"]`).last().click();

async function setUp(page) {
  await page.goto(args.url);
  await page.waitForURL('**/setup');
  const shown = (await page.locator('.fingerprint code').textContent()).trim();
  check(shown === (await certificate()), 'the fingerprint on the page is not that of the certificate');
  const log = readFileSync(join(args.work, 'gateway.log'), 'utf8');
  const code = readFileSync(join(args.work, 'data', 'setup-code'), 'utf8').trim();
  check(log.includes(code) && log.includes(shown), 'the log does not show the set-up code and the fingerprint');
  await look(page, 'set-up');
  const fill = async (typed, pin) => {
    await page.fill('#code', typed);
    await page.fill('#name', 'Ravi Kumar');
    await page.fill('#pin', pin);
    await page.fill('#pin-again', pin);
    await submit(page, '/setup');
  };
  await fill('AAAA-AAAA-AAAA', PIN);
  check((await page.locator('.problem').count()) === 1, 'a wrong set-up code is not refused');
  await fill(code, '123456');
  check((await page.locator('.problem').count()) === 1, 'a PIN that is easy to guess is not refused');
  await fill(code.toLowerCase(), PIN);
  await page.waitForURL(`${args.url}/`);
  await page.goto(`${args.url}/setup`);
  check(!page.url().includes('/setup'), 'the set-up is open a second time');
}

async function logIn(page, pin) {
  await page.goto(`${args.url}/login`);
  await page.selectOption('#who', { label: 'Ravi Kumar' });
  await page.fill('#pin', pin);
  await submit(page, '/login');
}

async function openWindow(page) {
  await page.goto(`${args.url}/pair`);
  await submit(page, '/pair/open');
  await page.locator('.nearby').waitFor({ state: 'attached', timeout: PATIENCE_MS });
}

async function choose(page, name) {
  await page.locator('a.near', { hasText: name }).click({ timeout: PATIENCE_MS });
  await page.locator('#code').waitFor({ timeout: PATIENCE_MS });
}

async function threeWrongCodes(page, name) {
  await openWindow(page);
  await look(page, 'window');
  await press(name.at(-1));
  for (const wrong of ['WRONGWRONGWRONGA', 'WRONGWRONGWRONGB', 'WRONGWRONGWRONGC']) {
    await choose(page, name);
    if (wrong.endsWith('A')) {
      await look(page, 'code');
      await page.fill('#code', 'not a code');
      await submit(page, '/pair/label');
      check((await page.locator('.problem').count()) === 1, 'what is no code is not refused');
    }
    await page.fill('#code', wrong);
    await submit(page, '/pair/label');
    await page.locator('.problem', { hasText: /\S/ }).waitFor({ timeout: PATIENCE_MS });
    if (wrong.endsWith('A')) await look(page, 'wrong-code');
    if (!wrong.endsWith('C')) await page.locator('main a.button').click();
  }
  await look(page, 'three-wrong-codes');
  const told = await page.locator('main').textContent();
  check(/three wrong codes/i.test(told), `the third wrong code does not close the window: ${told}`);
  await page.locator('main a.button').click();
  check((await page.locator('form[action="/pair/open"]').count()) === 1, 'the window is still open');
}

/** Window, code, wearer, consent, live; gives how long it took. */
async function pair(page, name, language, byPhoto) {
  await openWindow(page);
  const opened = Date.now();
  await press(name.at(-1));
  await page.locator('a.near', { hasText: name }).waitFor({ timeout: PATIENCE_MS });
  await look(page, `nearby-${language}`);
  await choose(page, name);
  if (byPhoto) {
    await page.setInputFiles('#photo', args.label);
    await submit(page, '/pair/photo');
  } else {
    await page.fill('#code', CODES[name].toLowerCase().replace(/(.{4})/g, '$1 '));
    await submit(page, '/pair/label');
  }
  await page.waitForURL('**/wearer/**', { timeout: PATIENCE_MS });
  await look(page, `wearer-${language}`);
  await page.fill('#name', language === 'hi' ? 'मीरा शर्मा' : 'Meera S.');
  await page.locator('form:has(#name) button[type="submit"]').click();
  await page.locator('#agrees').waitFor({ timeout: PATIENCE_MS });
  check((await page.locator('.consent').getAttribute('lang')) === language, `the consent text is not in ${language}`);
  await look(page, `consent-${language}`);
  await page.check('#agrees');
  await page.locator('form:has(#agrees) button[type="submit"]').click();
  await page.waitForURL('**/live/**', { timeout: PATIENCE_MS });
  await page.locator('dd[data-channel="1"]', { hasText: /\d+\.\d/ }).waitFor({ timeout: LIVE_WITHIN_MS });
  const took = Date.now() - opened;
  await look(page, `live-${language}`);
  check(took <= LIVE_WITHIN_MS, `from the window to the first live value it took ${took} ms`);
  return took;
}

async function useDevice(page, name, language) {
  await page.goto(args.url);
  await look(page, `home-${language}`);
  await page.locator('a.device', { hasText: name }).click();
  await page.waitForURL('**/device/**');
  await look(page, `device-${language}`);
  await page.locator('form[action$="/identify"] button').click();
  await page.locator('.done').waitFor({ timeout: PATIENCE_MS });
}

async function forget(page, name, language) {
  await page.goto(args.url);
  await page.locator('a.device', { hasText: name }).click();
  await page.locator('a[href$="/forget"]').click();
  await page.waitForURL('**/forget');
  await look(page, `forget-${language}`);
  await page.locator('form[action$="/forget"] button').click();
  await page.locator('.done').waitFor({ timeout: PATIENCE_MS });
  check((await page.locator('a.device', { hasText: name }).count()) === 0, `${name} is still there after forgetting`);
}

async function audited(page, actions) {
  await page.goto(`${args.url}/audit`);
  await look(page, 'audit');
  const table = await page.locator('table').textContent();
  for (const action of actions) check(table.includes(action), `the audit does not show "${action}"`);
  check(table.includes('Ravi Kumar'), 'the audit does not show who');
}

const root = process.getuid?.() === 0;
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
  headless: true,
  // Chromium's own sandbox does not work for root. The rest keeps it from looking for hosts of its maker.
  args: [...(root ? ['--no-sandbox'] : []), '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});

/** A tablet in a nurse's hand. */
async function tablet(locale, javaScriptEnabled, colorScheme) {
  const context = await browser.newContext({
    viewport: { width: 600, height: 960 },
    ignoreHTTPSErrors: true,
    locale,
    javaScriptEnabled,
    colorScheme,
    hasTouch: true,
  });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  const errors = [];
  page.on('pageerror', (error) => errors.push(error.message));
  page.on('console', (message) => {
    // A refused form is answered with its status; the browser notes that as an error of loading.
    if (message.type() === 'error' && !/status of 4\d\d/.test(message.text())) errors.push(message.text());
  });
  return { page, errors };
}

let last = '';
try {
  const english = await tablet('en-GB', true, 'light');
  await setUp(english.page);
  await threeWrongCodes(english.page, 'K-3F21');
  const wizard_ms = await pair(english.page, 'K-3F21', 'en', true);
  await useDevice(english.page, 'K-3F21', 'en');
  // It replies first and blinks then.
  const blinks = () => /blinks/.test(readFileSync(join(args.work, 'wearable-1.log'), 'utf8'));
  for (let tries = 0; tries < 50 && !blinks(); tries++) await english.page.waitForTimeout(100);
  check(blinks(), 'the wearable does not blink');
  await forget(english.page, 'K-3F21', 'en');
  await audited(english.page, ['Set up the box', 'Pair', 'Give to a wearer', 'Make it blink', 'Forget', 'wrong_code']);
  await english.page.goto(`${args.url}/staff`);
  await look(english.page, 'staff');
  await english.page.goto(`${args.url}/help`);
  await look(english.page, 'help');
  await submit(english.page, '/logout');
  await english.page.waitForURL('**/login*');
  await english.page.goto(`${args.url}/audit`);
  check(english.page.url().includes('/login'), 'the audit is shown to somebody who has logged out');
  check(english.errors.length === 0, `the page complained: ${english.errors[0]}`);

  const hindi = await tablet('hi-IN', false, 'dark');
  await logIn(hindi.page, '000000');
  await look(hindi.page, 'wrong-pin-hi');
  check((await hindi.page.locator('.problem').count()) === 1, 'a wrong PIN is not refused');
  await logIn(hindi.page, PIN);
  await hindi.page.waitForURL(`${args.url}/`);
  const hindi_ms = await pair(hindi.page, 'K-3F22', 'hi', false);
  await useDevice(hindi.page, 'K-3F22', 'hi');
  await forget(hindi.page, 'K-3F22', 'hi');
  check((await hindi.page.locator('html').getAttribute('lang')) === 'hi', 'the page is not in Hindi');
  console.log(JSON.stringify({ ok: true, wizard_ms, hindi_without_script_ms: hindi_ms, pictures: shots }));
} catch (error) {
  for (const context of browser.contexts()) {
    for (const page of context.pages()) {
      last = page.url();
      await page.screenshot({ path: join(args.pictures, 'box-failure.png'), fullPage: true }).catch(() => undefined);
      console.error(`at ${last}: ${(await page.locator('main').textContent().catch(() => ''))?.slice(0, 400)}`);
    }
  }
  console.error(`failed: ${String(error?.message ?? error).split('\n').slice(0, 3).join(' ')}`);
  process.exitCode = 1;
} finally {
  await browser.close();
}
