/** One logged-in session's data: loads it, keeps it live, and fetches what a view asks for. */
import type { Auth } from './api/auth';
import { Client } from './api/client';
import { explain } from './api/http';
import type { ClinicEvent, ServerMessage } from './api/types';
import { now } from './clock';
import { FrameBatcher } from './live/batcher';
import { LiveSocket } from './live/socket';
import { LiveStore } from './live/store';

/** The types on every tile. */
export const TILE_TYPES = ['heart_rate', 'skin_temperature', 'eda'] as const;

export const SPARK_SPAN_MS = 5 * 60_000;
const EVENTS_SPAN_MS = 24 * 3_600_000;
/** The live connection brings changes at once; this is for whatever it did not bring. */
const RELOAD_MS = 60_000;
const RETRY_LOAD_MS = 5_000;
const HISTORY_AT_ONCE = 4;
/** After being away for longer the sparklines have a hole that one sees; it is filled from what was stored meanwhile. */
const REFILL_MS = 10_000;

export class Clinic {
  readonly client: Client;
  readonly store = new LiveStore();
  readonly socket: LiveSocket;
  /** Why the last load failed, for the view to show; null when it did not. */
  loadError: string | null = null;
  private readonly batcher: FrameBatcher<ServerMessage>;
  private reloadTimer: ReturnType<typeof setTimeout> | undefined;
  private stopped = false;
  private lostAt: number | null = null;
  private loading = false;
  private loadAgain = false;
  private readonly historyAsked = new Set<string>();
  private readonly historyQueue: string[] = [];
  private historyRunning = 0;
  private readonly errorListeners = new Set<() => void>();

  constructor(auth: Auth) {
    this.client = new Client(auth);
    this.batcher = new FrameBatcher((batch) => {
      this.store.apply(batch);
      // A message that only says "something changed" carries nothing to show: fetch it.
      if (batch.some(isHint)) void this.load();
    });
    this.socket = new LiveSocket(auth, {
      message: (message) => this.batcher.push(message),
      connection: (connection) => {
        if (connection.state === 'lost') this.lostAt ??= connection.lastMessageAt;
        this.store.setConnection(connection);
      },
      opened: () => {
        if (this.lostAt !== null && now() - this.lostAt > REFILL_MS) this.refill();
        this.lostAt = null;
        void this.load();
      },
    });
  }

  start(): void {
    void this.load();
    this.socket.start();
  }

  stop(): void {
    this.stopped = true;
    this.socket.stop();
    this.batcher.stop();
    clearTimeout(this.reloadTimer);
  }

  subscribeError = (listener: () => void): (() => void) => {
    this.errorListeners.add(listener);
    return () => this.errorListeners.delete(listener);
  };

  /** Fetches the stored state; calls that come while one is under way are one more load after it. */
  readonly load = async (): Promise<void> => {
    if (this.loading) {
      this.loadAgain = true;
      return;
    }
    this.loading = true;
    clearTimeout(this.reloadTimer);
    let next = RELOAD_MS;
    try {
      const [users, devices, gateways, latest, events] = await Promise.all([
        this.client.users(),
        this.client.devices(),
        this.client.gateways(),
        this.client.latest(),
        this.client.events({ from: now() - EVENTS_SPAN_MS }),
      ]);
      if (this.stopped) return;
      this.store.load({ users, devices, gateways, latest, events });
      this.setError(null);
    } catch (error) {
      if (this.stopped) return;
      this.setError(explain(error));
      next = RETRY_LOAD_MS * (1 + Math.random());
    } finally {
      this.loading = false;
    }
    if (this.loadAgain) {
      this.loadAgain = false;
      next = 1_000;
    }
    this.reloadTimer = setTimeout(() => void this.load(), next);
  };

  async acknowledge(event: ClinicEvent): Promise<void> {
    const answer = await this.client.acknowledge(event);
    this.store.addEvents([{ ...answer, acknowledgedAt: answer.acknowledgedAt ?? now() }]);
  }

  /** Asks once for a wearer's last minutes, for the sparklines; few at a time, however many tiles come into view. */
  wantHistory(userId: string): void {
    if (this.historyAsked.has(userId)) return;
    this.historyAsked.add(userId);
    this.historyQueue.push(userId);
    this.pumpHistory();
  }

  private refill(): void {
    const asked = [...this.historyAsked];
    this.historyAsked.clear();
    this.historyQueue.length = 0;
    this.store.clearSeries();
    for (const userId of asked) this.wantHistory(userId);
  }

  private pumpHistory(): void {
    while (this.historyRunning < HISTORY_AT_ONCE && !this.stopped) {
      const userId = this.historyQueue.shift();
      if (userId === undefined) return;
      this.historyRunning++;
      void this.history(userId)
        // A sparkline without its first minutes fills by itself; the values do not depend on it.
        .catch(() => this.historyAsked.delete(userId))
        .finally(() => {
          this.historyRunning--;
          this.pumpHistory();
        });
    }
  }

  private async history(userId: string): Promise<void> {
    const to = now();
    for (const readingType of TILE_TYPES) {
      const answer = await this.client.readings({ userId, readingType, from: to - SPARK_SPAN_MS, to, points: 150 });
      this.store.prependHistory(userId, readingType, answer.points);
    }
  }

  private setError(error: string | null): void {
    if (this.loadError === error) return;
    this.loadError = error;
    for (const listener of [...this.errorListeners]) listener();
  }
}

function isHint(message: ServerMessage): boolean {
  return (
    (message.type === 'event' && message.event === null) ||
    (message.type === 'gateway' && message.gateway === null) ||
    (message.type === 'device' && message.device === null)
  );
}
