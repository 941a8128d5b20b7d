// What the browser tests share: arguments, Debian's Chromium, login.
import { parseArgs } from 'node:util';
import { chromium } from 'playwright-core';

/** An outcome that one line explains. */
export class Failure extends Error {}

export function options(extra) {
  const { values } = parseArgs({
    options: { url: { type: 'string' }, email: { type: 'string' }, password: { type: 'string' }, ...extra },
  });
  for (const name of ['url', 'email', 'password']) {
    if (!values[name]) throw new Failure(`--${name} is missing`);
  }
  return values;
}

export function number(values, name) {
  const n = Number(values[name]);
  if (!Number.isFinite(n) || n < 0) throw new Failure(`--${name} takes a number, not "${values[name]}"`);
  return n;
}

/** Runs `work` with a page that is on the roster; closes the browser whatever happens, prints one line on failure. */
export async function main(read, work) {
  let browser;
  try {
    const values = read();
    const root = process.getuid?.() === 0;
    browser = await chromium.launch({
      executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
      headless: true,
      // Chromium's own sandbox does not work for root. The rest keeps it from looking for hosts of its maker.
      args: [
        ...(root ? ['--no-sandbox'] : []),
        '--disable-gpu',
        '--disable-quic',
        '--no-first-run',
        '--disable-background-networking',
        '--disable-component-update',
        '--disable-sync',
      ],
    });
    const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ignoreHTTPSErrors: true });
    const page = await context.newPage();
    const errors = [];
    page.on('pageerror', (error) => errors.push(error.message));
    await work(page, values, errors);
  } catch (error) {
    const missing = /executable doesn't exist|ENOENT/i.test(String(error?.message));
    console.error(
      missing
        ? 'failed: no Chromium. Install Debian’s chromium, or name one in CHROMIUM.'
        : `failed: ${String(error?.message ?? error).split('\n')[0]}`,
    );
    process.exitCode = 1;
  } finally {
    await browser?.close();
  }
}

export async function login(page, { url, email, password }, timeoutMs) {
  try {
    await page.goto(url, { timeout: timeoutMs });
  } catch (error) {
    throw new Failure(`${url} does not open: ${String(error.message).split('\n')[0]}`);
  }
  const field = page.getByTestId('login-email');
  try {
    await field.waitFor({ timeout: timeoutMs });
  } catch {
    throw new Failure(`${url} shows no login. Was the dashboard built (npm ci && npm run build) before the server?`);
  }
  await field.fill(email);
  await page.getByTestId('login-password').fill(password);
  await page.getByTestId('login-submit').click();
  const name = page.getByTestId('tenant-name');
  const refused = page.getByRole('alert');
  await Promise.race([name.waitFor({ timeout: timeoutMs }), refused.waitFor({ timeout: timeoutMs })]).catch(() => {
    throw new Failure('the login was not answered in time');
  });
  if (!(await name.isVisible())) throw new Failure(`login refused: ${(await refused.textContent())?.trim()}`);
  return ((await name.textContent()) ?? '').trim();
}
