/** Requests to the API, and its errors (RFC 9457 problem details) as something a person can act on. */

export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly title: string,
    readonly detail: string,
  ) {
    super(detail || title);
    this.name = 'Problem';
  }
}

/** The request did not reach the server, or the answer did not reach us. */
export class Unreachable extends Error {
  constructor() {
    super('The server cannot be reached. Check the network connection; the page keeps trying.');
    this.name = 'Unreachable';
  }
}

/** After this long without an answer a request counts as unreachable. */
const REQUEST_TIMEOUT_MS = 20_000;

/** Told of every answer's `Date`, by which the page knows how far this computer's clock is off. */
let onServerDate: (serverMs: number, sentAt: number) => void = () => {};

export function watchServerDate(handler: (serverMs: number, sentAt: number) => void): void {
  onServerDate = handler;
}

export interface Call {
  method?: 'GET' | 'POST' | 'PUT' | 'DELETE';
  path: string;
  query?: Record<string, string | number>;
  body?: unknown;
  token?: string;
  signal?: AbortSignal;
}

export async function call(request: Call): Promise<unknown> {
  const headers: Record<string, string> = { accept: 'application/json, application/problem+json' };
  if (request.token) headers['authorization'] = `Bearer ${request.token}`;
  if (request.body !== undefined) headers['content-type'] = 'application/json';
  const search = request.query
    ? `?${new URLSearchParams(Object.entries(request.query).map(([k, v]) => [k, String(v)])).toString()}`
    : '';
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), REQUEST_TIMEOUT_MS);
  const cancel = () => abort.abort();
  request.signal?.addEventListener('abort', cancel);
  const sentAt = Date.now();
  let response: Response;
  let raw: string;
  try {
    response = await fetch(`/api/v1${request.path}${search}`, {
      method: request.method ?? 'GET',
      headers,
      ...(request.body === undefined ? {} : { body: JSON.stringify(request.body) }),
      credentials: 'same-origin',
      cache: 'no-store',
      signal: abort.signal,
    });
    raw = await response.text();
  } catch (error) {
    if (request.signal?.aborted) throw error;
    throw new Unreachable();
  } finally {
    clearTimeout(timer);
    request.signal?.removeEventListener('abort', cancel);
  }
  const date = Date.parse(response.headers.get('date') ?? '');
  if (!Number.isNaN(date)) onServerDate(date, sentAt);
  if (!response.ok) throw problem(response.status, raw);
  if (raw === '') return null;
  try {
    return JSON.parse(raw) as unknown;
  } catch {
    throw new Problem(response.status, 'Unreadable answer', 'The server sent something that is not JSON.');
  }
}

/** The problem in an error answer, whatever its body is. */
export function problem(status: number, raw: string): Problem {
  let title = `Error ${status}`;
  let detail = '';
  try {
    const json = JSON.parse(raw) as { title?: unknown; detail?: unknown };
    if (typeof json.title === 'string') title = json.title;
    if (typeof json.detail === 'string') detail = json.detail;
  } catch {
    // A proxy's page: its text says nothing to a clinician.
  }
  if (detail === '' && (status === 502 || status === 503 || status === 504)) {
    detail = 'The server is not ready or is being restarted. Try again in a moment.';
  }
  return new Problem(status, title, detail);
}

/** One line for a person about any error. */
export function explain(error: unknown): string {
  if (error instanceof Problem) return error.detail ? `${error.detail}` : error.title;
  if (error instanceof Error) return error.message;
  return 'Something went wrong. Reload the page.';
}
