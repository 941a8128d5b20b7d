/**
 * Reads the API's JSON. What a view cannot do without must be there, else `ContractError` names the field;
 * everything else may be absent or null, so that an older or newer API does not blank the page.
 */
import type {
  Alert,
  Bond,
  Bonds,
  ClinicEvent,
  ConsentText,
  Decision,
  Device,
  Gap,
  Gateway,
  Introduction,
  LatestReading,
  LiveReading,
  Point,
  Readings,
  ReadingType,
  Role,
  Rule,
  ServerMessage,
  Session,
  StaffMember,
  User,
} from './types';

export class ContractError extends Error {
  constructor(what: string) {
    super(`The server's answer lacks ${what}. The page and the server may be of different versions; reload the page.`);
    this.name = 'ContractError';
  }
}

type Json = Record<string, unknown>;

function object(value: unknown, what: string): Json {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new ContractError(what);
  return value as Json;
}

function text(json: Json, field: string): string {
  const value = json[field];
  if (typeof value !== 'string') throw new ContractError(`"${field}"`);
  return value;
}

function textOr<T>(json: Json, field: string, otherwise: T): string | T {
  const value = json[field];
  return typeof value === 'string' ? value : otherwise;
}

function number(json: Json, field: string): number {
  const value = json[field];
  if (typeof value !== 'number' || !Number.isFinite(value)) throw new ContractError(`"${field}"`);
  return value;
}

function numberOr<T>(json: Json, field: string, otherwise: T): number | T {
  const value = json[field];
  return typeof value === 'number' && Number.isFinite(value) ? value : otherwise;
}

function booleanOr<T>(json: Json, field: string, otherwise: T): boolean | T {
  const value = json[field];
  return typeof value === 'boolean' ? value : otherwise;
}

function texts(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((v): v is string => typeof v === 'string') : [];
}

/** Milliseconds from RFC 3339 or from a number of milliseconds. */
export function instant(value: unknown): number | null {
  if (typeof value === 'number' && Number.isFinite(value)) return value;
  if (typeof value !== 'string') return null;
  const ms = Date.parse(value);
  return Number.isNaN(ms) ? null : ms;
}

function instantOf(json: Json, field: string): number {
  const ms = instant(json[field]);
  if (ms === null) throw new ContractError(`"${field}"`);
  return ms;
}

/** The `items` of a list answer, each read by `read`. */
export function items<T>(value: unknown, read: (item: unknown) => T): T[] {
  const list = object(value, 'a list')['items'];
  if (!Array.isArray(list)) throw new ContractError('"items"');
  return list.map(read);
}

function role(value: string): Role {
  return value === 'admin' || value === 'clinician' ? value : 'viewer';
}

export function session(value: unknown): Session {
  const json = object(value, 'a session');
  const member = object(json['member'], '"member"');
  const tenant = object(json['tenant'], '"tenant"');
  return {
    accessToken: text(json, 'access_token'),
    expiresInS: number(json, 'expires_in'),
    member: { id: text(member, 'id'), email: text(member, 'email'), role: role(text(member, 'role')) },
    tenant: {
      id: text(tenant, 'id'),
      name: text(tenant, 'name'),
      slug: textOr(tenant, 'slug', ''),
      timeZone: textOr(tenant, 'time_zone', 'UTC'),
    },
  };
}

export function user(value: unknown): User {
  const json = object(value, 'a wearer');
  const id = text(json, 'id');
  const externalId = textOr(json, 'external_id', '');
  return {
    id,
    externalId,
    displayName: textOr(json, 'display_name', '') || externalId || id,
    timeZone: textOr(json, 'time_zone', 'UTC'),
    devices: texts(json['devices']),
    provisional: booleanOr(json, 'provisional', false),
    addedByGateway: textOr(json, 'added_by_gateway', null),
  };
}

function bond(value: unknown): Bond {
  const json = object(value, 'a bond');
  return {
    id: text(json, 'id'),
    gatewayId: text(json, 'gateway_id'),
    gatewayName: textOr(json, 'gateway_name', 'Gateway'),
    adapter: textOr(json, 'adapter', ''),
    how: textOr(json, 'how', ''),
    since: instantOf(json, 'since_at'),
    revokedAt: instant(json['revoked_at']),
  };
}

function introduction(value: unknown): Introduction {
  const json = object(value, 'an introduction');
  return {
    id: text(json, 'id'),
    fromGateway: text(json, 'from_gateway'),
    toGateway: text(json, 'to_gateway'),
    state: textOr(json, 'state', 'open'),
    askedAt: instantOf(json, 'asked_at'),
    expiresAt: instantOf(json, 'expires_at'),
  };
}

export function bonds(value: unknown): Bonds {
  const json = object(value, 'bonds');
  return {
    bonds: items({ items: json['bonds'] }, bond),
    introductions: items({ items: json['introductions'] }, introduction),
  };
}

export function decision(value: unknown): Decision {
  const json = object(value, 'a decision');
  return {
    id: text(json, 'id'),
    gatewayId: text(json, 'gateway_id'),
    kind: text(json, 'kind'),
    at: instantOf(json, 'at'),
    actor: textOr(json, 'actor_name', '') || textOr(json, 'actor_kind', ''),
    refused: textOr(json, 'refused', null),
  };
}

export function staffMember(value: unknown): StaffMember {
  const json = object(value, 'a member');
  return {
    id: text(json, 'id'),
    email: text(json, 'email'),
    role: role(text(json, 'role')),
    boxName: textOr(json, 'box_name', null),
    pinSetAt: instant(json['pin_set_at']),
  };
}

export function consentText(value: unknown): ConsentText {
  const json = object(value, 'a consent text');
  return {
    version: text(json, 'version'),
    language: text(json, 'language'),
    text: text(json, 'text'),
    createdAt: instantOf(json, 'created_at'),
    current: booleanOr(json, 'current', false),
  };
}

export function device(value: unknown): Device {
  const json = object(value, 'a device');
  const link = json['link'];
  const l = typeof link === 'object' && link !== null ? (link as Json) : null;
  const hardwareId = textOr(json, 'hardware_id', '');
  return {
    id: text(json, 'id'),
    hardwareId,
    name: textOr(json, 'name', '') || hardwareId || 'Device',
    deviceType: textOr(json, 'device_type', ''),
    userId: textOr(json, 'user_id', null),
    firmwareVersion: textOr(json, 'firmware_version', null),
    lastSeenAt: instant(json['last_seen_at']),
    batteryPercent: numberOr(json, 'battery_percent', null),
    worn: booleanOr(json, 'worn', null),
    link: l && {
      gatewayId: textOr(l, 'gateway_id', null),
      rssiDbm: numberOr(l, 'rssi_dbm', null),
      connected: booleanOr(l, 'connected', false),
      bufferedFrames: numberOr(l, 'buffered_frames', null),
      backlogFrames: numberOr(l, 'backlog_frames', null),
      problem: textOr(l, 'problem', '') || null,
    },
  };
}

export function gateway(value: unknown): Gateway {
  const json = object(value, 'a gateway');
  const b = json['buffer'];
  const buffer = typeof b === 'object' && b !== null ? (b as Json) : null;
  const c = json['clock'];
  const clock = typeof c === 'object' && c !== null ? (c as Json) : null;
  return {
    id: text(json, 'id'),
    name: textOr(json, 'name', '') || 'Gateway',
    lastSeenAt: instant(json['last_seen_at']),
    online: booleanOr(json, 'online', false),
    buffer: buffer && {
      frames: numberOr(buffer, 'frames', 0),
      batches: numberOr(buffer, 'batches', 0),
      bytes: numberOr(buffer, 'bytes', 0),
      oldestAt: instant(buffer['oldest_at']),
    },
    clock: clock && {
      source: textOr(clock, 'source', ''),
      uncertaintyMs: numberOr(clock, 'uncertainty_ms', null),
    },
    version: textOr(json, 'version', null),
    level: textOr(json, 'level', null),
    notes: texts(json['notes']),
  };
}

export function event(value: unknown): ClinicEvent {
  const json = object(value, 'an event');
  const data = json['data'];
  const time = instantOf(json, 'time');
  return {
    time,
    rawTime: typeof json['time'] === 'string' ? json['time'] : time,
    userId: text(json, 'user_id'),
    eventType: text(json, 'event_type'),
    severity: textOr(json, 'severity', null),
    confidence: numberOr(json, 'confidence', null),
    data: typeof data === 'object' && data !== null && !Array.isArray(data) ? (data as Json) : {},
    acknowledgedAt: instant(json['acknowledged_at']),
  };
}

export function alert(value: unknown): Alert {
  const json = object(value, 'an alert');
  return {
    id: text(json, 'id'),
    userId: textOr(json, 'user_id', null),
    title: text(json, 'title'),
    severity: textOr(json, 'severity', 'info'),
    from: instantOf(json, 'from_at'),
    to: instantOf(json, 'to_at'),
    raisedAt: instantOf(json, 'raised_at'),
    acknowledgedAt: instant(json['acknowledged_at']),
  };
}

export function rule(value: unknown): Rule {
  const json = object(value, 'a rule');
  return {
    id: text(json, 'id'),
    name: text(json, 'name'),
    severity: textOr(json, 'severity', 'info'),
    userId: textOr(json, 'user_id', null),
    eventType: textOr(json, 'event_type', null),
    leastConfidence: numberOr(json, 'least_confidence', null),
    readingType: textOr(json, 'reading_type', null),
    above: numberOr(json, 'above', null),
    below: numberOr(json, 'below', null),
    minutes: numberOr(json, 'minutes', null),
  };
}

export function gap(value: unknown): Gap {
  const json = object(value, 'a gap');
  return { from: instant(json['from_at']), to: instant(json['to_at']), reason: textOr(json, 'reason', 'unknown') };
}

export function readings(value: unknown): Readings {
  const json = object(value, 'readings');
  const list = json['points'];
  if (!Array.isArray(list)) throw new ContractError('"points"');
  const points: Point[] = [];
  for (const p of list as unknown[]) {
    if (!Array.isArray(p)) continue;
    const [ms, value, min, max] = p as unknown[];
    if (typeof ms !== 'number' || typeof value !== 'number') continue;
    points.push([ms, value, typeof min === 'number' ? min : value, typeof max === 'number' ? max : value]);
  }
  return { readingType: textOr(json, 'reading_type', ''), unit: textOr(json, 'unit', ''), points };
}

export function readingType(value: unknown): ReadingType {
  const json = object(value, 'a type of reading');
  return {
    name: text(json, 'name'),
    unit: textOr(json, 'unit', ''),
    min: number(json, 'min'),
    max: number(json, 'max'),
    intervalS: number(json, 'interval_s'),
  };
}

export function latest(value: unknown): LatestReading {
  const json = object(value, 'a reading');
  const timeMs = instant(json['time_ms'] ?? json['time']);
  if (timeMs === null) throw new ContractError('"time"');
  return {
    userId: text(json, 'user_id'),
    readingType: text(json, 'reading_type'),
    value: number(json, 'value'),
    unit: textOr(json, 'unit', ''),
    timeMs,
  };
}

function live(value: unknown): LiveReading {
  const json = object(value, 'a live reading');
  return {
    readingType: text(json, 'reading_type'),
    value: number(json, 'value'),
    unit: textOr(json, 'unit', ''),
    timeMs: number(json, 'time_ms'),
    key: text(json, 'key'),
    stored: booleanOr(json, 'stored', false),
  };
}

/** `read`, or null where the message is only a hint that something changed. */
function maybe<T>(value: unknown, read: (v: unknown) => T): T | null {
  try {
    return read(value);
  } catch {
    return null;
  }
}

export function serverMessage(raw: string): ServerMessage {
  const json = object(JSON.parse(raw), 'a message');
  switch (json['type']) {
    case 'live': {
      const list = json['readings'];
      return {
        type: 'live',
        userId: text(json, 'user_id'),
        deviceId: text(json, 'device_id'),
        readings: Array.isArray(list) ? list.map((r) => maybe(r, live)).filter((r) => r !== null) : [],
      };
    }
    case 'stored':
      return { type: 'stored', deviceId: text(json, 'device_id'), epoch: text(json, 'epoch'), seq: number(json, 'seq') };
    case 'event':
      return { type: 'event', event: maybe(json['event'] ?? json, event) };
    case 'gateway':
      return { type: 'gateway', gateway: whole(json, 'gateway', 'buffer', gateway) };
    case 'device':
      return { type: 'device', device: whole(json, 'device', 'hardware_id', device) };
    case 'alerts':
      return { type: 'alerts' };
    case 'ready':
      return { type: 'ready' };
    default:
      return { type: 'other' };
  }
}

/** The item in a change message, when the message carries all of it and not only its id. */
function whole<T>(json: Json, nested: string, mark: string, read: (v: unknown) => T): T | null {
  const inner = json[nested];
  const item = typeof inner === 'object' && inner !== null ? (inner as Json) : json;
  return mark in item ? maybe(item, read) : null;
}
