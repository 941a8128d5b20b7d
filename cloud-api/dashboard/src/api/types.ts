/** What the API says, in the names it uses. Times that the API writes as RFC 3339 are milliseconds here. */

export type Role = 'admin' | 'clinician' | 'viewer';

export interface Member {
  id: string;
  email: string;
  role: Role;
}

export interface Tenant {
  id: string;
  name: string;
  slug: string;
  timeZone: string;
}

export interface Session {
  accessToken: string;
  expiresInS: number;
  member: Member;
  tenant: Tenant;
}

/** A wearer. */
export interface User {
  id: string;
  externalId: string;
  displayName: string;
  timeZone: string;
  devices: string[];
  /** Added at a box; nobody has said yet who they are. */
  provisional: boolean;
  addedByGateway: string | null;
}

/** What can be measured, and between which values. */
export interface ReadingType {
  name: string;
  unit: string;
  min: number;
  max: number;
  /** Seconds that one reading covers. */
  intervalS: number;
}

/** A gateway that knows a device. */
export interface Bond {
  id: string;
  gatewayId: string;
  gatewayName: string;
  adapter: string;
  how: string;
  since: number;
  /** Since when it is to be taken off. */
  revokedAt: number | null;
}

/** A gateway that is to get to know a device. */
export interface Introduction {
  id: string;
  fromGateway: string;
  toGateway: string;
  state: string;
  askedAt: number;
  expiresAt: number;
}

export interface Bonds {
  bonds: Bond[];
  introductions: Introduction[];
}

/** What somebody decided at a box. */
export interface Decision {
  id: string;
  gatewayId: string;
  kind: string;
  at: number;
  actor: string;
  /** Why it was not carried out. */
  refused: string | null;
}

/** A member, and whether they may use the boxes' own pages. */
export interface StaffMember {
  id: string;
  email: string;
  role: Role;
  boxName: string | null;
  pinSetAt: number | null;
}

export interface ConsentText {
  version: string;
  language: string;
  text: string;
  createdAt: number;
  /** The one that boxes show. */
  current: boolean;
}

export interface Link {
  gatewayId: string | null;
  rssiDbm: number | null;
  connected: boolean;
  /** On the gateway, not yet in the cloud. */
  bufferedFrames: number | null;
  /** Still on the wearable. */
  backlogFrames: number | null;
  /** Why there is no link, and what to do. */
  problem: string | null;
}

export interface Device {
  id: string;
  hardwareId: string;
  name: string;
  deviceType: string;
  userId: string | null;
  firmwareVersion: string | null;
  lastSeenAt: number | null;
  batteryPercent: number | null;
  worn: boolean | null;
  link: Link | null;
}

export interface GatewayBuffer {
  frames: number;
  batches: number;
  bytes: number;
  oldestAt: number | null;
}

export interface Gateway {
  id: string;
  name: string;
  lastSeenAt: number | null;
  online: boolean;
  buffer: GatewayBuffer | null;
  clock: { source: string; uncertaintyMs: number | null } | null;
  version: string | null;
  /** How full its disk is: `ok`, `soft_limit` or `hard_limit`. */
  level: string | null;
  /** What a person should know. */
  notes: string[];
}

export interface ClinicEvent {
  time: number;
  /** The time as the API wrote it: part of the event's identity, and finer than a millisecond. */
  rawTime: string | number;
  userId: string;
  eventType: string;
  severity: string | null;
  confidence: number | null;
  data: Record<string, unknown>;
  acknowledgedAt: number | null;
}

/** What somebody has to look at. */
export interface Alert {
  id: string;
  /** About nobody in particular: null. */
  userId: string | null;
  title: string;
  severity: string;
  /** The first and the last time at which it held. */
  from: number;
  to: number;
  raisedAt: number;
  acknowledgedAt: number | null;
}

/** When an alert is raised: of an event, or of a reading above or below a bound for so many minutes. */
export interface Rule {
  id: string;
  name: string;
  severity: string;
  /** Of one wearer alone. */
  userId: string | null;
  eventType: string | null;
  leastConfidence: number | null;
  readingType: string | null;
  above: number | null;
  below: number | null;
  minutes: number | null;
}

/** A time without readings and why; an end is null while it is not known. */
export interface Gap {
  from: number | null;
  to: number | null;
  reason: string;
}

/** One downsampled point: epoch ms, value, and the least and greatest value of its bucket. */
export type Point = [ms: number, value: number, min: number, max: number];

export interface Readings {
  readingType: string;
  unit: string;
  points: Point[];
}

export interface LatestReading {
  userId: string;
  readingType: string;
  value: number;
  unit: string;
  timeMs: number;
}

/** A value as it came over the live connection. */
export interface LiveReading {
  readingType: string;
  value: number;
  unit: string;
  timeMs: number;
  key: string;
  stored: boolean;
}

export type ServerMessage =
  | { type: 'live'; userId: string; deviceId: string; readings: LiveReading[] }
  | { type: 'stored'; deviceId: string; epoch: string; seq: number }
  | { type: 'event'; event: ClinicEvent | null }
  | { type: 'gateway'; gateway: Gateway | null }
  | { type: 'device'; device: Device | null }
  | { type: 'alerts' }
  | { type: 'ready' }
  | { type: 'other' };
