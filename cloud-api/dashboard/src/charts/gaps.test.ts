import { describe, expect, it } from 'vitest';
import type { Point } from '../api/types';
import { coarsen, columns, gapThresholdMs } from './gaps';

const none = { t: [], v: [], firstPending: Infinity };
const point = (s: number, v = 1): Point => [s * 1_000, v, v - 0.5, v + 0.5];

describe('gapThresholdMs', () => {
  it('follows the buckets of a long span and the sampling of a short one', () => {
    expect(gapThresholdMs(1, 900_000, 1_000)).toBe(5_000);
    expect(gapThresholdMs(1, 7 * 86_400_000, 1_000)).toBe(3 * 604_800);
    expect(gapThresholdMs(60, 900_000, 1_000)).toBe(180_000);
  });
});

describe('coarsen', () => {
  it('takes the mean of each bucket, at the time of its first value', () => {
    const tail = { t: [0, 1_000, 59_000, 60_000, 61_000], v: [1, 2, 3, 10, 20], firstPending: 60_000 };
    expect(coarsen(tail, 60_000)).toEqual({ t: [0, 60_000], v: [2, 15], firstPending: 60_000 });
  });

  it('leaves a short span as it is', () => {
    const tail = { t: [0, 250], v: [1, 2], firstPending: Infinity };
    expect(coarsen(tail, 900)).toBe(tail);
  });
});

describe('columns', () => {
  it('breaks the line at a gap, in all columns alike', () => {
    const c = columns([point(1), point(2), point(60), point(61)], none, 0, 100_000, 5_000);
    expect(c.t).toEqual([1, 2, 31, 60, 61]);
    expect(c.value).toEqual([1, 1, null, 1, 1]);
    expect(c.min[2]).toBeNull();
    expect(c.max[2]).toBeNull();
  });

  it('does not break at the threshold itself', () => {
    expect(columns([point(0), point(5)], none, 0, 10_000, 5_000).value).toEqual([1, 1]);
  });

  it('keeps to the span', () => {
    expect(columns([point(1), point(2), point(3)], none, 2_000, 2_500, 5_000).t).toEqual([2]);
  });

  it('continues with live points after the stored ones, once each', () => {
    const tail = { t: [2_000, 3_000, 4_000], v: [7, 8, 9], firstPending: Infinity };
    const c = columns([point(1), point(2)], tail, 0, 10_000, 5_000);
    expect(c.value).toEqual([1, 1, 8, 9]);
  });

  it('draws what is not yet stored apart, joined to the last stored point', () => {
    const tail = { t: [3_000, 4_000, 5_000], v: [7, 8, 9], firstPending: 4_000 };
    const c = columns([point(1), point(2)], tail, 0, 10_000, 5_000);
    expect(c.value).toEqual([1, 1, 7, null, null]);
    expect(c.pending).toEqual([null, null, 7, 8, 9]);
  });

  it('does not join what is not yet stored across a gap', () => {
    const tail = { t: [60_000], v: [9], firstPending: 60_000 };
    const c = columns([point(1)], tail, 0, 100_000, 5_000);
    expect(c.pending).toEqual([null, null, 9]);
  });

  it('is in time order even if the server’s points are not', () => {
    const c = columns([point(2), point(1), point(3)], none, 0, 10_000, 5_000);
    expect(c.t).toEqual([2, 3]);
  });
});
