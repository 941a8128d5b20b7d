/**
 * Who is logged in. The access token lives in memory only; the refresh token is a cookie that scripts cannot read.
 *
 * The refresh token rotates: each one may be used once. So there is at most one refresh under way, however many
 * requests find their token expired (they wait for that one), and over all tabs of this browser refreshes are
 * in turn, by a lock. Only the server's refusal ends the session; a server that cannot be reached does not.
 */
import * as decode from './decode';
import { call, Problem, type Call } from './http';
import type { Session } from './types';

export interface AuthPort {
  call(request: Call): Promise<unknown>;
  /** Runs `work` while no other tab does. */
  exclusively<T>(work: () => Promise<T>): Promise<T>;
  now(): number;
}

export const browserPort: AuthPort = {
  call,
  // Locks exist in secure contexts only; over plain HTTP to another machine tabs go unserialised.
  exclusively: async (work) => ('locks' in navigator ? await navigator.locks.request('kinara-refresh', work) : work()),
  now: () => Date.now(),
};

/** A token that ends sooner than this is refreshed before use. */
const EARLY_MS = 30_000;

export class Auth {
  session: Session | null = null;
  private expiresAt = 0;
  private refreshing: Promise<Session> | null = null;
  private readonly listeners = new Set<(session: Session | null) => void>();

  constructor(private readonly port: AuthPort = browserPort) {}

  subscribe(listener: (session: Session | null) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  async login(email: string, password: string): Promise<Session> {
    const answer = await this.port.call({ method: 'POST', path: '/auth/login', body: { email, password } });
    return this.enter(decode.session(answer));
  }

  /** The session of this browser's cookie, if there is one. */
  async resume(): Promise<Session | null> {
    try {
      return await this.refresh();
    } catch (error) {
      if (refused(error)) return null;
      throw error;
    }
  }

  async logout(): Promise<void> {
    const token = this.session?.accessToken;
    this.leave();
    await this.port.call({ method: 'POST', path: '/auth/logout', ...(token ? { token } : {}) });
  }

  /** Forgets the session here, e.g. because another tab logged out. */
  leave(): void {
    this.session = null;
    this.expiresAt = 0;
    for (const listener of this.listeners) listener(null);
  }

  /** A token good for at least half a minute. */
  async token(): Promise<string> {
    if (this.session && this.port.now() < this.expiresAt - EARLY_MS) return this.session.accessToken;
    return (await this.refresh()).accessToken;
  }

  /** An authorised request; refreshes once if the server finds the token expired. */
  async request(request: Call): Promise<unknown> {
    const token = await this.token();
    try {
      return await this.port.call({ ...request, token });
    } catch (error) {
      if (!(error instanceof Problem) || error.status !== 401) throw error;
    }
    // Another request may have refreshed meanwhile; then its token is the one to use.
    const current = this.session?.accessToken;
    const fresh = current && current !== token ? current : (await this.refresh()).accessToken;
    return this.port.call({ ...request, token: fresh });
  }

  refresh(): Promise<Session> {
    this.refreshing ??= this.port
      .exclusively(() => this.port.call({ method: 'POST', path: '/auth/refresh' }))
      .then((answer) => this.enter(decode.session(answer)))
      .catch((error: unknown) => {
        if (refused(error) && this.session) this.leave();
        throw error;
      })
      .finally(() => {
        this.refreshing = null;
      });
    return this.refreshing;
  }

  private enter(session: Session): Session {
    this.session = session;
    this.expiresAt = this.port.now() + session.expiresInS * 1000;
    for (const listener of this.listeners) listener(session);
    return session;
  }
}

function refused(error: unknown): boolean {
  return error instanceof Problem && (error.status === 400 || error.status === 401 || error.status === 403);
}
