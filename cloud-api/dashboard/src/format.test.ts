import { describe, expect, it } from 'vitest';
import { ago, bytes, duration, gapReason, isStale, sentence, value, Zone } from './format';

describe('value', () => {
  it('has one decimal, also for whole and negative numbers', () => {
    expect(value(72)).toBe('72.0');
    expect(value(33.46)).toBe('33.5');
    expect(value(-0.04)).toBe('0.0');
    expect(value(1234.5)).toBe('1,234.5');
  });

  it('has none for what is counted', () => {
    expect(value(812, 'rr_interval')).toBe('812');
  });

  it('is a dash where there is nothing', () => {
    for (const v of [null, undefined, Number.NaN]) expect(value(v)).toBe('—');
  });
});

describe('age', () => {
  it('is stale after 15 s, not at 15 s', () => {
    expect(isStale(0, 15_000)).toBe(false);
    expect(isStale(0, 15_001)).toBe(true);
  });

  it('reads in its largest unit', () => {
    expect(duration(16_400)).toBe('16 s');
    expect(duration(61_000)).toBe('1 min');
    expect(duration(2 * 3_600_000 + 5 * 60_000)).toBe('2 h 5 min');
    expect(duration(26 * 3_600_000)).toBe('1 d 2 h');
    expect(duration(9 * 86_400_000 + 3_600_000)).toBe('9 d');
  });

  it('of a sample from a clock a little ahead is now', () => {
    expect(ago(1_500, 1_000)).toBe('just now');
  });
});

describe('Zone', () => {
  it('shows times in the clinic’s zone, whatever this computer’s is', () => {
    const z = new Zone('Asia/Kolkata');
    const t = Date.UTC(2026, 10, 23, 20, 15, 7);
    expect(z.time(t)).toBe('01:45:07');
    expect(z.moment(t, t)).toBe('01:45:07');
    expect(z.moment(t - 3 * 3_600_000, t)).toBe('Mon 23 Nov, 22:45:07');
  });

  it('falls back to UTC, and says so, when the zone is unknown', () => {
    expect(new Zone('Mars/Olympus').name).toBe('UTC');
  });
});

describe('words', () => {
  it('come from the API’s names', () => {
    expect(sentence('hot_flash')).toBe('Hot flash');
    expect(gapReason('overflow')).toBe('Wearable’s memory was full');
    expect(gapReason('lost: gateway retired')).toBe('Gateway was retired');
    expect(gapReason('something_new')).toBe('Something new');
  });

  it('give bytes a unit', () => {
    expect([bytes(512), bytes(2_048), bytes(5.5 * 1_048_576)]).toEqual(['512 B', '2.0 KiB', '5.5 MiB']);
  });
});
