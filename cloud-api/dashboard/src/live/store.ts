/**
 * All that the page knows, outside React: a message changes only what it is about, and only the views of that render.
 *
 * A value on screen is either *live* (it came over the live connection and may yet be lost) or *stored*. It is live
 * until the server says that its key is stored, or until the stored readings are seen to have reached its time.
 * A stored mark never turns back, and a value is never replaced by an older one.
 */
import type { Alert, ClinicEvent, Device, Gateway, LatestReading, Point, ServerMessage, User } from '../api/types';
import { now } from '../clock';
import { type Episode, episodes, eventId } from '../episodes';
import type { BufferSample } from '../gateway';
import { type SampleKey, parseKey, StoredMarks } from './key';
import { Series } from './series';

export interface Current {
  readonly value: number;
  readonly unit: string;
  readonly timeMs: number;
  readonly stored: boolean;
  readonly device: string;
  readonly key: SampleKey | null;
}

export interface Snapshot {
  users: User[];
  devices: Device[];
  gateways: Gateway[];
  latest: LatestReading[];
  events: ClinicEvent[];
  alerts: Alert[];
}

export interface Connection {
  readonly state: 'connecting' | 'open' | 'lost';
  /** When the last message came, or null before the first. */
  readonly lastMessageAt: number | null;
  /** When the next attempt is due, while lost. */
  readonly retryAt: number | null;
  /** Why the server ended it, in its words; empty when it did not say. */
  readonly reason: string;
}

/** Down, or coming back after having been down; not the first moments of a page. */
export function isLost(c: Connection): boolean {
  return c.state === 'lost' || (c.state === 'connecting' && c.lastMessageAt !== null);
}

const EVENTS_KEPT = 200;
const BUFFER_SAMPLES_KEPT = 300;

export class LiveStore {
  users: readonly User[] = [];
  devices: readonly Device[] = [];
  gateways: readonly Gateway[] = [];
  events: readonly ClinicEvent[] = [];
  /** What the events are, newest first: always of the same state as `events`. */
  episodes: readonly Episode[] = [];
  /** Those that nobody has dealt with, newest first. */
  alerts: readonly Alert[] = [];
  loaded = false;
  connection: Connection = { state: 'connecting', lastMessageAt: null, retryAt: null, reason: '' };

  private readonly current = new Map<string, Current>();
  private readonly serieses = new Map<string, Series>();
  /** Series (and so current values) that hold something not yet stored, by device. */
  private readonly unsettled = new Map<string, Set<string>>();
  private readonly buffers = new Map<string, BufferSample[]>();
  private readonly devicesOf = new Map<string, readonly Device[]>();
  private readonly marks = new StoredMarks();
  private readonly listeners = new Map<string, Set<() => void>>();
  private readonly dirty = new Set<string>();

  subscribe(topic: string, listener: () => void): () => void {
    let set = this.listeners.get(topic);
    if (!set) {
      set = new Set();
      this.listeners.set(topic, set);
    }
    set.add(listener);
    return () => {
      set.delete(listener);
    };
  }

  reading(userId: string, readingType: string): Current | undefined {
    return this.current.get(`${userId}|${readingType}`);
  }

  series(userId: string, readingType: string): Series {
    const id = `${userId}|${readingType}`;
    let series = this.serieses.get(id);
    if (!series) {
      series = new Series();
      this.serieses.set(id, series);
    }
    return series;
  }

  devicesOfUser(userId: string): readonly Device[] {
    return this.devicesOf.get(userId) ?? NO_DEVICES;
  }

  bufferHistory(gatewayId: string): readonly BufferSample[] {
    return this.buffers.get(gatewayId) ?? NO_SAMPLES;
  }

  /** The stored state, at start and after every reconnection. */
  load(snapshot: Snapshot): void {
    this.users = [...snapshot.users].sort((a, b) => collator.compare(a.displayName, b.displayName));
    this.loaded = true;
    this.touch('users');
    this.setDevices(snapshot.devices);
    const present = new Set(snapshot.gateways.map((g) => g.id));
    this.gateways = this.gateways.filter((g) => present.has(g.id));
    for (const gateway of snapshot.gateways) this.setGateway(gateway);
    this.touch('gateways');
    this.addEvents(snapshot.events);
    this.alerts = snapshot.alerts;
    this.touch('alerts');
    for (const reading of snapshot.latest) this.storedReading(reading);
    this.flush();
  }

  /** Applies messages in the order they came, then tells each view that is concerned once. */
  apply(messages: readonly ServerMessage[]): void {
    for (const message of messages) this.applyOne(message);
    this.flush();
  }

  setConnection(connection: Connection): void {
    this.connection = connection;
    this.touch('connection');
    this.flush();
  }

  /** Forgets the last minutes of all series, for they have a hole that only the stored readings can fill. */
  clearSeries(): void {
    for (const [id, series] of this.serieses) {
      series.clear();
      this.touch(id);
    }
    this.flush();
  }

  /** Stored points of the last minutes, before those that came live. */
  prependHistory(userId: string, readingType: string, points: readonly Point[]): void {
    this.series(userId, readingType).prepend(points);
    this.touch(`${userId}|${readingType}`);
    this.flush();
  }

  addEvents(events: readonly ClinicEvent[]): void {
    if (events.length === 0) return;
    const byId = new Map(this.events.map((e) => [eventId(e), e]));
    for (const e of events) {
      const known = byId.get(eventId(e));
      // A slow list must not undo an acknowledgement seen since.
      byId.set(eventId(e), known?.acknowledgedAt && !e.acknowledgedAt ? known : e);
    }
    this.events = [...byId.values()].sort((a, b) => b.time - a.time).slice(0, EVENTS_KEPT);
    this.episodes = episodes(this.events);
    this.touch('events');
    this.flush();
  }

  /** The API acknowledges by wearer, kind and onset: every event that has these, whoever made it. */
  acknowledged(event: ClinicEvent, at: number): void {
    const same = this.events.filter((e) => e.userId === event.userId && e.eventType === event.eventType && e.time === event.time);
    this.addEvents(same.map((e) => ({ ...e, acknowledgedAt: e.acknowledgedAt ?? at })));
  }

  private applyOne(message: ServerMessage): void {
    switch (message.type) {
      case 'live': {
        for (const r of message.readings) {
          const id = `${message.userId}|${r.readingType}`;
          const key = parseKey(r.key);
          const stored = r.stored || (key !== null && this.marks.covers(message.deviceId, key));
          this.series(message.userId, r.readingType).append(r.timeMs, r.value, message.deviceId, key, stored);
          const known = this.current.get(id);
          if (known && known.timeMs > r.timeMs) continue;
          // The same sample again (a snapshot after reconnecting) does not take its stored mark back.
          const settled = stored || (known?.timeMs === r.timeMs && known.device === message.deviceId && known.stored);
          this.current.set(id, {
            value: r.value,
            unit: r.unit,
            timeMs: r.timeMs,
            stored: settled,
            device: message.deviceId,
            key,
          });
          if (!settled) this.unsettle(message.deviceId, id);
          this.touch(id);
        }
        break;
      }
      case 'stored':
        this.marks.mark(message.deviceId, message.epoch, message.seq);
        this.settle(message.deviceId);
        break;
      case 'event':
        if (message.event) this.addEvents([message.event]);
        break;
      case 'gateway':
        if (message.gateway) {
          this.setGateway(message.gateway);
          this.touch('gateways');
        }
        break;
      case 'device': {
        const device = message.device;
        if (device) this.setDevices([...this.devices.filter((d) => d.id !== device.id), device]);
        break;
      }
      case 'alerts':
      case 'ready':
      case 'other':
        break;
    }
  }

  private storedReading(r: LatestReading): void {
    const id = `${r.userId}|${r.readingType}`;
    this.series(r.userId, r.readingType).settleUntil(r.timeMs);
    const known = this.current.get(id);
    if (!known || known.timeMs < r.timeMs) {
      this.current.set(id, { value: r.value, unit: r.unit, timeMs: r.timeMs, stored: true, device: '', key: null });
    } else if (!known.stored && known.timeMs === r.timeMs) {
      this.current.set(id, { ...known, stored: true });
    }
    this.touch(id);
  }

  private unsettle(device: string, id: string): void {
    let ids = this.unsettled.get(device);
    if (!ids) {
      ids = new Set();
      this.unsettled.set(device, ids);
    }
    ids.add(id);
  }

  private settle(device: string): void {
    const ids = this.unsettled.get(device);
    if (!ids) return;
    for (const id of ids) {
      const series = this.serieses.get(id);
      const moved = series?.settle(this.marks) ?? false;
      const current = this.current.get(id);
      let open = series ? series.firstPending() !== Number.POSITIVE_INFINITY : false;
      if (current && !current.stored && current.device === device) {
        if (current.key && this.marks.covers(device, current.key)) this.current.set(id, { ...current, stored: true });
        else open = true;
      }
      if (moved || current !== this.current.get(id)) this.touch(id);
      if (!open) ids.delete(id);
    }
  }

  private setDevices(devices: readonly Device[]): void {
    this.devices = devices;
    const byUser = new Map<string, Device[]>();
    for (const d of [...devices].sort((a, b) => collator.compare(a.name, b.name))) {
      if (d.userId === null) continue;
      const list = byUser.get(d.userId);
      if (list) list.push(d);
      else byUser.set(d.userId, [d]);
    }
    for (const userId of new Set([...this.devicesOf.keys(), ...byUser.keys()])) {
      const after = byUser.get(userId) ?? [];
      const before = this.devicesOf.get(userId) ?? [];
      if (before.length === after.length && before.every((d, i) => d === after[i])) continue;
      this.devicesOf.set(userId, after);
      this.touch(`devices|${userId}`);
    }
    this.touch('devices');
  }

  private setGateway(gateway: Gateway): void {
    const before = this.gateways.find((g) => g.id === gateway.id);
    this.gateways = [...this.gateways.filter((g) => g.id !== gateway.id), gateway].sort((a, b) =>
      collator.compare(a.name, b.name),
    );
    // The same report fetched again is not a later one.
    if (!gateway.buffer || (before && before.lastSeenAt === gateway.lastSeenAt && sameBuffer(before, gateway))) return;
    const history = this.buffers.get(gateway.id) ?? [];
    const sample = { t: now(), frames: gateway.buffer.frames, batches: gateway.buffer.batches, bytes: gateway.buffer.bytes };
    this.buffers.set(gateway.id, [...history, sample].slice(-BUFFER_SAMPLES_KEPT));
  }

  private touch(topic: string): void {
    this.dirty.add(topic);
  }

  private flush(): void {
    const topics = [...this.dirty];
    this.dirty.clear();
    for (const topic of topics) {
      const set = this.listeners.get(topic);
      if (set) for (const listener of [...set]) listener();
    }
  }
}

function sameBuffer(a: Gateway, b: Gateway): boolean {
  return a.buffer?.frames === b.buffer?.frames && a.buffer?.bytes === b.buffer?.bytes && a.buffer?.oldestAt === b.buffer?.oldestAt;
}

const NO_DEVICES: readonly Device[] = [];
const NO_SAMPLES: readonly BufferSample[] = [];
const collator = new Intl.Collator('en', { numeric: true, sensitivity: 'base' });
