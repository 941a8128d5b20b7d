import { describe, expect, it } from 'vitest';
import type { Gateway } from './api/types';
import { gatewayState } from './gateway';

const NOW = 1_000_000;
const gateway = (online: boolean, frames: number, age: number | null): Gateway => ({
  id: 'g', name: 'A', lastSeenAt: NOW, online, clock: null, version: null, level: null, notes: [],
  buffer: { frames, batches: 0, bytes: 0, oldestAt: age === null ? null : NOW - age },
});
const history = (...frames: number[]) => frames.map((f, i) => ({ t: NOW - (frames.length - 1 - i) * 5_000, frames: f, batches: 0, bytes: 0 }));

describe('gatewayState', () => {
  it('is delivering in the ordinary flow', () => {
    expect(gatewayState(gateway(true, 0, null), history(0), NOW)).toBe('delivering');
    expect(gatewayState(gateway(true, 40, 6_000), history(38, 40), NOW)).toBe('delivering');
  });

  it('is buffering while the gateway is away', () => {
    expect(gatewayState(gateway(false, 40, 6_000), history(40), NOW)).toBe('buffering');
  });

  it('is draining while old frames become fewer', () => {
    expect(gatewayState(gateway(true, 500, 60_000), history(900, 700, 500), NOW)).toBe('draining');
  });

  it('is held while old frames become more', () => {
    expect(gatewayState(gateway(true, 900, 60_000), history(500, 700, 900), NOW)).toBe('held');
  });

  it('judges the age of the oldest frame by the time of the report', () => {
    const report = { ...gateway(true, 40, 36_000), lastSeenAt: NOW - 30_000 };
    expect(gatewayState(report, [], NOW)).toBe('delivering');
  });

  it('is silent when its last word is old', () => {
    expect(gatewayState({ ...gateway(true, 0, null), lastSeenAt: NOW - 100_000 }, [], NOW)).toBe('silent');
  });

  it('is unknown before the first report', () => {
    expect(gatewayState({ ...gateway(false, 0, null), buffer: null }, [], NOW)).toBe('unknown');
  });
});
