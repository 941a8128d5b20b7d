/** The live connection: opens, proves who we are, renews the token, and comes back after every loss. */
import type { Auth } from '../api/auth';
import { serverMessage } from '../api/decode';
import type { ServerMessage } from '../api/types';
import { now } from '../clock';
import { Backoff } from './backoff';
import type { Connection } from './store';

/** An attempt that has not been answered by then is given up. */
const OPEN_TIMEOUT_MS = 10_000;
/** A connection that lasted so long was a good one: the next loss starts from the shortest wait again. */
const STABLE_MS = 10_000;
/** The token on the connection is renewed this often (it lives 15 minutes). */
const RENEW_MS = 10 * 60_000;
/**
 * A connection that says nothing for this long is opened anew, for a network that drops packets never closes one.
 * Doubled, up to the second figure, while there is nothing to say (no wearable in range).
 */
const SILENCE_MS = 30_000;
const LONGEST_SILENCE_MS = 240_000;
const WATCH_MS = 5_000;
/** Close codes by which the server says that the token was wrong or is over. */
const UNAUTHORISED = new Set([4401, 4403]);

export interface SocketEvents {
  message(message: ServerMessage): void;
  connection(connection: Connection): void;
  /** The connection is up (again): whatever changed meanwhile has to be fetched. */
  opened(): void;
}

export class LiveSocket {
  private socket: WebSocket | null = null;
  private stopped = false;
  private attempt = 0;
  private readonly backoff = new Backoff();
  private retry: ReturnType<typeof setTimeout> | undefined;
  private openTimer: ReturnType<typeof setTimeout> | undefined;
  private stableTimer: ReturnType<typeof setTimeout> | undefined;
  private renewTimer: ReturnType<typeof setInterval> | undefined;
  private watchTimer: ReturnType<typeof setInterval> | undefined;
  private lastMessageAt: number | null = null;
  private silence = SILENCE_MS;

  constructor(
    private readonly auth: Auth,
    private readonly events: SocketEvents,
  ) {}

  start(): void {
    addEventListener('online', this.retryNow);
    addEventListener('offline', this.offline);
    void this.connect();
  }

  stop(): void {
    this.stopped = true;
    removeEventListener('online', this.retryNow);
    removeEventListener('offline', this.offline);
    this.drop();
  }

  /** Skips the rest of the wait. */
  readonly retryNow = (): void => {
    if (this.stopped || this.socket) return;
    this.backoff.reset();
    clearTimeout(this.retry);
    void this.connect();
  };

  /** The computer says its network is gone; a broken TCP connection would say so only after minutes. */
  private readonly offline = (): void => {
    if (this.socket) this.lost();
  };

  private async connect(quietly = false): Promise<void> {
    const attempt = ++this.attempt;
    if (!quietly) this.say('connecting', null);
    let token: string;
    try {
      token = await this.auth.token();
    } catch {
      // A refusal has ended the session, and with it this connection; otherwise the server is not there.
      if (attempt === this.attempt) this.lost();
      return;
    }
    if (this.stopped || attempt !== this.attempt) return;
    const address = new URL('/api/v1/live', location.href);
    address.protocol = address.protocol.replace('http', 'ws');
    const socket = new WebSocket(address);
    this.socket = socket;
    let open = false;
    this.openTimer = setTimeout(() => {
      if (socket === this.socket && !open) this.lost();
    }, OPEN_TIMEOUT_MS);
    socket.onopen = () => socket.send(JSON.stringify({ token }));
    socket.onmessage = (event: MessageEvent<unknown>) => {
      if (socket !== this.socket || typeof event.data !== 'string') return;
      this.lastMessageAt = now();
      if (!open) {
        open = true;
        this.opened();
      }
      let message: ServerMessage;
      try {
        message = serverMessage(event.data);
      } catch (error) {
        console.warn('A live message was not understood and is left out:', error);
        return;
      }
      if (message.type === 'live') this.silence = SILENCE_MS;
      this.events.message(message);
    };
    socket.onclose = (event) => {
      if (socket !== this.socket) return;
      if (UNAUTHORISED.has(event.code)) {
        // The token may have ended early (a role changed, a key rotated): get a new one, or be logged out.
        void this.auth.refresh().catch(() => undefined);
      }
      // Below 4000 the codes are the protocol's own, and their reasons not for people.
      this.lost(event.code >= 4000 && !UNAUTHORISED.has(event.code) ? event.reason : '');
    };
  }

  private opened(): void {
    clearTimeout(this.openTimer);
    this.say('open', null);
    this.stableTimer = setTimeout(() => this.backoff.reset(), STABLE_MS);
    this.renewTimer = setInterval(() => void this.renew(), RENEW_MS);
    this.watchTimer = setInterval(() => this.watch(), WATCH_MS);
    this.events.opened();
  }

  private watch(): void {
    if (this.lastMessageAt === null || now() - this.lastMessageAt < this.silence) return;
    this.silence = Math.min(2 * this.silence, LONGEST_SILENCE_MS);
    this.drop();
    void this.connect(true);
  }

  private async renew(): Promise<void> {
    try {
      const session = await this.auth.refresh();
      this.socket?.send(JSON.stringify({ token: session.accessToken }));
    } catch {
      // The server closes the connection when the old token ends; then the ordinary way back begins.
    }
  }

  private lost(reason = ''): void {
    this.drop();
    if (this.stopped) return;
    const wait = this.backoff.next();
    this.say('lost', now() + wait, reason);
    this.retry = setTimeout(() => void this.connect(), wait);
  }

  private drop(): void {
    this.attempt++;
    clearTimeout(this.openTimer);
    clearTimeout(this.stableTimer);
    clearInterval(this.renewTimer);
    clearInterval(this.watchTimer);
    clearTimeout(this.retry);
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }

  private say(state: Connection['state'], retryAt: number | null, reason = ''): void {
    this.events.connection({ state, lastMessageAt: this.lastMessageAt, retryAt, reason });
  }
}
