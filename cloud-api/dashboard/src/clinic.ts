/** One logged-in session's data: loads it, keeps it live, and fetches what a view asks for. */
import type { Auth } from './api/auth';
import { Client } from './api/client';
import { explain } from './api/http';
import type { ServerMessage } from './api/types';
import { now } from './clock';
import { type Episode, unacknowledged } from './episodes';
import { FrameBatcher } from './live/batcher';
import { History } from './live/history';
import { LiveSocket } from './live/socket';
import { LiveStore } from './live/store';

/** The types on every tile. */
export const TILE_TYPES = ['heart_rate', 'skin_temperature', 'eda'] as const;

export const SPARK_SPAN_MS = 5 * 60_000;
const EVENTS_SPAN_MS = 24 * 3_600_000;
/** The live connection brings changes at once; this is for whatever it did not bring. */
const RELOAD_MS = 60_000;
const RETRY_LOAD_MS = 5_000;
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
  private readonly history: History;
  private readonly errorListeners = new Set<() => void>();

  constructor(auth: Auth) {
    this.client = new Client(auth);
    this.history = new History(TILE_TYPES, {
      fetch: async (userId, readingType) => {
        const to = now();
        return (await this.client.readings({ userId, readingType, from: to - SPARK_SPAN_MS, to, points: 150 })).points;
      },
      deliver: (userId, readingType, points) => this.store.prependHistory(userId, readingType, points),
    });
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
    this.history.stop();
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
      const [users, devices, gateways, latest, events, alerts] = await Promise.all([
        this.client.users(),
        this.client.devices(),
        this.client.gateways(),
        this.client.latest(),
        this.client.events({ from: now() - EVENTS_SPAN_MS }),
        this.client.openAlerts(),
      ]);
      if (this.stopped) return;
      this.store.load({ users, devices, gateways, latest, events, alerts });
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

  /** Acknowledges all that belongs to an episode. What was acknowledged before one failed stays so; the rest stays open. */
  async acknowledge(episode: Episode): Promise<void> {
    const answers = await Promise.allSettled(
      unacknowledged(episode).map(async (event) => {
        const answer = await this.client.acknowledge(event);
        this.store.acknowledged(event, answer.acknowledgedAt ?? now());
      }),
    );
    const failed = answers.find((a) => a.status === 'rejected');
    if (failed) throw failed.reason;
  }

  /** Asks once for a wearer's last minutes, for the sparklines. */
  wantHistory(userId: string): void {
    this.history.want(userId);
  }

  private refill(): void {
    this.store.clearSeries();
    this.history.refill();
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
    (message.type === 'device' && message.device === null) ||
    message.type === 'alerts'
  );
}
