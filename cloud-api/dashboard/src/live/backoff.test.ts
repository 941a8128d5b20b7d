import { describe, expect, it } from 'vitest';
import { Backoff } from './backoff';

describe('Backoff', () => {
  it('doubles its bound up to 10 s', () => {
    const b = new Backoff(() => 1);
    expect([1, 2, 3, 4, 5, 6, 7].map(() => b.next())).toEqual([1_000, 2_000, 4_000, 8_000, 10_000, 10_000, 10_000]);
  });

  it('spreads over the whole time and never hammers', () => {
    const b = new Backoff(() => 0);
    for (let i = 0; i < 5; i++) expect(b.next()).toBe(200);
  });

  it('starts again from the shortest wait after a good connection', () => {
    const b = new Backoff(() => 1);
    b.next();
    b.next();
    b.reset();
    expect(b.next()).toBe(1_000);
  });
});
