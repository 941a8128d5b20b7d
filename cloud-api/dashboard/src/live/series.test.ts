import { describe, expect, it } from 'vitest';
import { Series, sparkPath } from './series';

const key = (seq: number) => ({ epoch: '0000000000000001', seq });

describe('Series', () => {
  it('puts history before the live points, without doubling the overlap', () => {
    const s = new Series();
    s.append(10_000, 1, 'd', key(1), false);
    s.prepend([[8_000, 5, 5, 5], [9_000, 6, 6, 6], [10_000, 1, 1, 1], [11_000, 9, 9, 9]]);
    expect(s.t).toEqual([8_000, 9_000, 10_000]);
    expect(s.v).toEqual([5, 6, 1]);
  });

  it('leaves out a point that is not newer than the last', () => {
    const s = new Series();
    s.append(2, 1, 'd', key(1), true);
    s.append(1, 9, 'd', key(0), true);
    s.append(2, 9, 'd', key(1), true);
    expect(s.v).toEqual([1]);
  });

  it('stays bounded however long the page is open', () => {
    const s = new Series();
    for (let i = 0; i < 10_000; i++) s.append(i * 1_000, i, 'd', key(i), false);
    expect(s.t.length).toBeLessThanOrEqual(1_300);
    expect(s.t[s.t.length - 1]).toBe(9_999_000);
    expect(s.firstPending()).toBe(s.t[0]);
  });
});

describe('sparkPath', () => {
  const at = (t: number[]) => ({ t, v: t.map(() => 1) });

  it('is empty with fewer than two points to join', () => {
    expect(sparkPath(at([]), 0, 300_000, 100, 28, 1)).toBe('');
    expect(sparkPath(at([1_000]), 1_000, 300_000, 100, 28, 1)).toBe('');
  });

  it('breaks the line where there was no reading', () => {
    const t = [...Array.from({ length: 20 }, (_, i) => i * 3_000), ...Array.from({ length: 20 }, (_, i) => 120_000 + i * 3_000)];
    const path = sparkPath(at(t), 177_000, 300_000, 100, 28, 1);
    expect(path.match(/M/g)).toHaveLength(2);
  });

  it('keeps a steady value in the middle, not stretched to the whole height', () => {
    const path = sparkPath({ t: [0, 5_000, 10_000], v: [70, 70.2, 70.1] }, 10_000, 300_000, 100, 28, 20);
    const ys = [...path.matchAll(/ (\d+\.\d)/g)].map((m) => Number(m[1]));
    expect(Math.max(...ys) - Math.min(...ys)).toBeLessThan(1);
    expect(ys[0]).toBeCloseTo(14, 0);
  });
});
