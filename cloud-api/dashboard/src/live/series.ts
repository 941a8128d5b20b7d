/**
 * The last minutes of one reading type of one wearer, for sparklines and the live end of a chart.
 * Points are in time order and at most `CAPACITY`; those not yet stored are remembered until they are.
 */
import { type SampleKey, type StoredMarks } from './key';

export const KEPT_MS = 16 * 60_000;
const CAPACITY = 1_200;

interface Pending {
  t: number;
  device: string;
  key: SampleKey;
}

export class Series {
  readonly t: number[] = [];
  readonly v: number[] = [];
  private pending: Pending[] = [];
  /** Counts changes, so that a view can tell a new state from an old one. */
  version = 0;

  /** Adds a live point; one that is older than the newest is not for the live end and is left to `/readings`. */
  append(t: number, v: number, device: string, key: SampleKey | null, stored: boolean): void {
    const last = this.t[this.t.length - 1];
    if (last !== undefined && t <= last) return;
    this.t.push(t);
    this.v.push(v);
    if (!stored && key) this.pending.push({ t, device, key });
    this.trim(t - KEPT_MS);
    this.version++;
  }

  /** Puts stored history before the first live point. */
  prepend(points: readonly (readonly [number, number, ...number[]])[]): void {
    const first = this.t[0] ?? Number.POSITIVE_INFINITY;
    const older = points.filter((p) => p[0] < first);
    if (older.length === 0) return;
    this.t.unshift(...older.map((p) => p[0]));
    this.v.unshift(...older.map((p) => p[1]));
    this.trim(-Infinity);
    this.version++;
  }

  clear(): void {
    this.t.length = 0;
    this.v.length = 0;
    this.pending = [];
    this.version++;
  }

  /** True when a point left the not-yet-stored ones. */
  settle(marks: StoredMarks): boolean {
    if (this.pending.length === 0) return false;
    const left = this.pending.filter((p) => !marks.covers(p.device, p.key));
    if (left.length === this.pending.length) return false;
    this.pending = left;
    this.version++;
    return true;
  }

  /** Everything up to `t` is known to be stored (the newest stored reading is at `t`). */
  settleUntil(t: number): void {
    const left = this.pending.filter((p) => p.t > t);
    if (left.length !== this.pending.length) {
      this.pending = left;
      this.version++;
    }
  }

  /** The time of the oldest point not yet stored, or infinity. */
  firstPending(): number {
    return this.pending[0]?.t ?? Number.POSITIVE_INFINITY;
  }

  private trim(before: number): void {
    let drop = Math.max(0, this.t.length - CAPACITY);
    // In blocks: removing the head of an array moves all of it.
    if (drop < 100 && (this.t[100] ?? Infinity) < before) drop = 100;
    else if (drop < 100) drop = 0;
    if (drop > 0) {
      this.t.splice(0, drop);
      this.v.splice(0, drop);
      const first = this.t[0] ?? 0;
      this.pending = this.pending.filter((p) => p.t >= first);
    }
  }
}

/** Breaks of the line: no point for this long. Live values come once a second; history in steps of a few seconds. */
const BREAK_MS = 15_000;

/**
 * The path of a sparkline: `spanMs` up to `end`, in a box of `width` × `height`, averaged on a fixed time grid
 * (so that the line slides instead of flickering), with a gap where there was no reading.
 */
export function sparkPath(
  series: { t: readonly number[]; v: readonly number[] },
  end: number,
  spanMs: number,
  width: number,
  height: number,
  minRange: number,
): string {
  const step = spanMs / 100;
  const from = end - spanMs;
  const points: { t: number; v: number }[] = [];
  let bucket = -1;
  let sum = 0;
  let n = 0;
  let at = 0;
  let low = Infinity;
  let high = -Infinity;
  const flush = () => {
    if (n === 0) return;
    const v = sum / n;
    points.push({ t: at / n, v });
    low = Math.min(low, v);
    high = Math.max(high, v);
  };
  let start = series.t.length;
  while (start > 0 && (series.t[start - 1] as number) >= from) start--;
  for (let i = start; i < series.t.length; i++) {
    const t = series.t[i] as number;
    const b = Math.floor(t / step);
    if (b !== bucket) {
      flush();
      bucket = b;
      sum = 0;
      n = 0;
      at = 0;
    }
    sum += series.v[i] as number;
    at += t;
    n++;
  }
  flush();
  if (points.length < 2) return '';
  const spread = Math.max(high - low, minRange);
  const floor = (high + low) / 2 - spread / 2;
  const pad = 2;
  let path = '';
  let previous = -Infinity;
  for (const p of points) {
    const x = ((p.t - from) / spanMs) * width;
    const y = pad + (1 - (p.v - floor) / spread) * (height - 2 * pad);
    path += `${p.t - previous > BREAK_MS ? 'M' : 'L'}${x.toFixed(1)} ${y.toFixed(1)}`;
    previous = p.t;
  }
  return path;
}
