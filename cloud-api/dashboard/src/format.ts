/** Numbers, ages and times as people read them. */

export const DASH = '—';

/** One decimal, with the digits of the page's language (English). */
const oneDecimal = new Intl.NumberFormat('en', { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });

/** Types that are counted, not measured: a decimal would claim a precision that is not there. */
const COUNTED = new Set(['activity_counts', 'steps', 'battery', 'rr_interval']);

export function value(v: number | null | undefined, readingType = ''): string {
  if (v === null || v === undefined || !Number.isFinite(v)) return DASH;
  const shown = (COUNTED.has(readingType) ? whole : oneDecimal).format(v);
  return shown === '-0.0' ? '0.0' : shown;
}

export function count(n: number): string {
  return whole.format(n);
}

/** Live values older than this are not shown as current. */
export const STALE_MS = 15_000;

export function isStale(timeMs: number, nowMs: number): boolean {
  return nowMs - timeMs > STALE_MS;
}

/** A length of time in its largest sensible unit: `8 s`, `3 min`, `2 h 5 min`, `4 d`. */
export function duration(ms: number): string {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 60) return `${s} s`;
  const min = Math.floor(s / 60);
  if (min < 60) return `${min} min`;
  const h = Math.floor(min / 60);
  if (h < 24) return min % 60 ? `${h} h ${min % 60} min` : `${h} h`;
  const d = Math.floor(h / 24);
  return h % 24 && d < 7 ? `${d} d ${h % 24} h` : `${d} d`;
}

export function ago(timeMs: number, nowMs: number): string {
  return nowMs - timeMs < 2_000 ? 'just now' : `${duration(nowMs - timeMs)} ago`;
}

export function bytes(n: number): string {
  if (n < 1_024) return `${whole.format(n)} B`;
  if (n < 1_024 * 1_024) return `${oneDecimal.format(n / 1_024)} KiB`;
  return `${oneDecimal.format(n / 1_048_576)} MiB`;
}

/** Formats in one time zone; an unknown zone's name falls back to UTC and says so. */
export class Zone {
  readonly name: string;
  private readonly times: Intl.DateTimeFormat;
  private readonly minutes: Intl.DateTimeFormat;
  private readonly days: Intl.DateTimeFormat;

  constructor(name: string) {
    let timeZone = name;
    try {
      new Intl.DateTimeFormat('en-GB', { timeZone });
    } catch {
      timeZone = 'UTC';
    }
    this.name = timeZone;
    const clock = { timeZone, hour: '2-digit', minute: '2-digit', hourCycle: 'h23' } as const;
    this.times = new Intl.DateTimeFormat('en-GB', { ...clock, second: '2-digit' });
    this.minutes = new Intl.DateTimeFormat('en-GB', clock);
    this.days = new Intl.DateTimeFormat('en-GB', { timeZone, weekday: 'short', day: 'numeric', month: 'short' });
  }

  time(ms: number): string {
    return this.times.format(ms);
  }

  minute(ms: number): string {
    return this.minutes.format(ms);
  }

  day(ms: number): string {
    return this.days.format(ms);
  }

  /** The time, with the day where it is not today. */
  moment(ms: number, nowMs: number): string {
    const day = this.day(ms);
    return day === this.day(nowMs) ? this.time(ms) : `${day}, ${this.time(ms)}`;
  }
}

const TYPE_NAMES: Record<string, string> = {
  heart_rate: 'Heart rate',
  skin_temperature: 'Skin temperature',
  eda: 'EDA',
  rr_interval: 'RR interval',
  ambient_temperature: 'Ambient temperature',
  spo2: 'SpO₂',
  activity_counts: 'Activity',
  steps: 'Steps',
  battery: 'Battery',
};

export function typeName(readingType: string): string {
  return TYPE_NAMES[readingType] ?? sentence(readingType);
}

const UNITS: Record<string, string> = { uS: 'µS', degC: '°C', C: '°C', count: '', '1': '' };

/** The API's unit, in its usual sign. */
export function unit(raw: string): string {
  return UNITS[raw] ?? raw;
}

/** `hot_flash` → `Hot flash`. */
export function sentence(name: string): string {
  const words = name.replace(/[_-]+/g, ' ').trim();
  return words.charAt(0).toUpperCase() + words.slice(1);
}

const REASONS: Record<string, string> = {
  reset: 'Wearable restarted; its last seconds were not yet saved',
  overflow: 'Wearable’s memory was full',
  quota: 'Gateway’s disk was full',
  gateway_lost: 'Gateway’s data was lost',
  gateway_retired: 'Gateway was retired',
  no_consent: 'No consent',
  worn_off: 'Not worn',
  not_worn: 'Not worn',
  out_of_range: 'Out of range',
  late: 'Not yet received; a wearable or gateway may still hold it',
  erased: 'Erased at the wearer’s wish',
  expired: 'Came too late to be kept',
};

/** Why readings are missing, for a clinician. */
export function gapReason(reason: string): string {
  return REASONS[reason.replace(/^lost:\s*/, '').replace(/[ -]/g, '_')] ?? sentence(reason);
}
