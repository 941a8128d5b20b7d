/** Turns downsampled points into columns in which a time without readings is a break of the line, never a bridge. */
import type { Point } from '../api/types';

/**
 * How long without a point is a gap: three samples of the type (`intervalS` apart, as the API says), or three of the chart's buckets (the server keeps at
 * least one point of every bucket that has readings), and never less than 5 s, for a frame of samples comes at once.
 */
export function gapThresholdMs(intervalS: number, spanMs: number, points: number): number {
  return Math.max(3_000 * intervalS, (3 * spanMs) / Math.max(1, points), 5_000);
}

export interface Columns {
  /** Seconds, as the chart wants them. */
  t: number[];
  value: (number | null)[];
  min: (number | null)[];
  max: (number | null)[];
  /** The part not yet stored, drawn apart; it starts at the last stored point, so that the two meet. */
  pending: (number | null)[];
}

export interface LiveTail {
  t: readonly number[];
  v: readonly number[];
  firstPending: number;
}

/** The live tail in buckets as wide as the stored points', so that a long span does not end in a smear of single values. */
export function coarsen(tail: LiveTail, bucketMs: number): LiveTail {
  if (bucketMs <= 1_000) return tail;
  const t: number[] = [];
  const v: number[] = [];
  let bucket = Number.NaN;
  let n = 0;
  for (let i = 0; i < tail.t.length; i++) {
    const ms = tail.t[i] as number;
    const value = tail.v[i] as number;
    const last = t.length - 1;
    if (Math.floor(ms / bucketMs) === bucket) {
      n++;
      v[last] = (v[last] as number) + (value - (v[last] as number)) / n;
    } else {
      bucket = Math.floor(ms / bucketMs);
      n = 1;
      t.push(ms);
      v.push(value);
    }
  }
  return { t, v, firstPending: tail.firstPending };
}

/** Joins stored points and the live tail after them; `null` columns mark the breaks. */
export function columns(points: readonly Point[], tail: LiveTail, from: number, to: number, thresholdMs: number): Columns {
  const out: Columns = { t: [], value: [], min: [], max: [], pending: [] };
  let previous = Number.NaN;
  let previousPending = false;
  const push = (ms: number, value: number, min: number, max: number, pending: boolean) => {
    if (ms - previous > thresholdMs) {
      out.t.push((previous + ms) / 2 / 1000);
      out.value.push(null);
      out.min.push(null);
      out.max.push(null);
      out.pending.push(null);
    } else if (pending && !previousPending && out.pending.length > 0) {
      out.pending[out.pending.length - 1] = out.value[out.value.length - 1] ?? null;
    }
    out.t.push(ms / 1000);
    out.value.push(pending ? null : value);
    out.min.push(pending ? null : min);
    out.max.push(pending ? null : max);
    out.pending.push(pending ? value : null);
    previous = ms;
    previousPending = pending;
  };
  for (const [ms, value, min, max] of points) {
    if (ms < from || ms > to || ms <= previous) continue;
    push(ms, value, min, max, false);
  }
  for (let i = 0; i < tail.t.length; i++) {
    const ms = tail.t[i] as number;
    if (ms < from || ms > to || ms <= previous) continue;
    const value = tail.v[i] as number;
    push(ms, value, value, value, ms >= tail.firstPending);
  }
  return out;
}
