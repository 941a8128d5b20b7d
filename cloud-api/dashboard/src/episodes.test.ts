import { describe, expect, it } from 'vitest';
import type { ClinicEvent } from './api/types';
import { EPISODE_MS, type Episode, episodes, foundBy, unacknowledged } from './episodes';

const MINUTE = 60_000;
const RULE = 'rule:sternal/1';
const MODEL = 'model:hot_flash/1.0.0';

const event = (producer: string | null, minutes: number, more: Partial<ClinicEvent> = {}): ClinicEvent => ({
  time: minutes * MINUTE,
  rawTime: minutes * MINUTE,
  userId: 'u',
  eventType: 'hot_flash',
  severity: null,
  confidence: 0.5,
  data: producer === null ? {} : { producer },
  acknowledgedAt: null,
  ...more,
});
const only = (events: ClinicEvent[]): Episode => {
  const all = episodes(events);
  expect(all).toHaveLength(1);
  return all[0] as Episode;
};
/** For each episode, newest first, its members' minutes. */
const shape = (events: ClinicEvent[]) => episodes(events).map((e) => e.events.map((m) => m.time / MINUTE));

describe('episodes', () => {
  it('make one of what the rule and the model found, with the first onset and the highest confidence', () => {
    const e = only([event(RULE, 1.25, { confidence: 1 }), event(MODEL, 1, { confidence: 0.86 })]);
    expect(e).toMatchObject({ time: MINUTE, confidence: 1, producers: [MODEL, RULE], acknowledgedAt: null });
    expect(e.events).toHaveLength(2);
  });

  it('keep two events of one producer apart, however near', () => {
    expect(shape([event(RULE, 0), event(RULE, 1)])).toEqual([[1], [0]]);
  });

  it('end ten minutes after their first onset, not after their last', () => {
    expect(shape([event(RULE, 0), event(MODEL, EPISODE_MS / MINUTE)])).toEqual([[0, 10]]);
    expect(shape([event(RULE, 0), event(MODEL, 10.01)])).toEqual([[10.01], [0]]);
    expect(shape([event(RULE, 0), event(MODEL, 8), event('annotator:a', 12)])).toEqual([[12], [0, 8]]);
  });

  it('never join wearers or kinds', () => {
    expect(episodes([event(RULE, 0), event(MODEL, 0, { userId: 'v' }), event(MODEL, 0, { eventType: 'fall' })])).toHaveLength(3);
  });

  it('pair two near episodes each with its own', () => {
    expect(shape([event(RULE, 0), event(MODEL, 1), event(RULE, 8), event(MODEL, 9)])).toEqual([[8, 9], [0, 1]]);
    expect(shape([event(RULE, 0), event(RULE, 8), event(MODEL, 9)])).toEqual([[8, 9], [0]]);
  });

  it('are the same whatever order the events come in, newest first', () => {
    const events = [event(RULE, 0), event(MODEL, 0), event(RULE, 30), event(MODEL, 31), event(RULE, 50)];
    expect(shape(events)).toEqual([[50], [30, 31], [0, 0]]);
    expect(episodes([...events].reverse())).toEqual(episodes(events));
  });

  it('leave an event alone that does not say who made it', () => {
    expect(shape([event(null, 0), event(RULE, 1), event(null, 2), event(MODEL, 3)])).toEqual([[2], [1, 3], [0]]);
  });

  it('are open while one of their events is, and acknowledged with the last', () => {
    expect(only([event(RULE, 0, { acknowledgedAt: 7 }), event(MODEL, 1)]).acknowledgedAt).toBeNull();
    expect(only([event(RULE, 0, { acknowledgedAt: 7 }), event(MODEL, 1, { acknowledgedAt: 9 })]).acknowledgedAt).toBe(9);
  });

  it('have the severity of the surest event that has one', () => {
    const e = only([event(RULE, 0, { confidence: 1 }), event(MODEL, 1, { confidence: 0.8, severity: 'mild' })]);
    expect(e).toMatchObject({ severity: 'mild', confidence: 1 });
    expect(only([event(RULE, 0, { confidence: null })]).confidence).toBeNull();
  });
});

describe('unacknowledged', () => {
  it('is every event still open, and each onset once', () => {
    const times = (events: ClinicEvent[]) => unacknowledged(only(events)).map((e) => e.time / MINUTE);
    expect(times([event(RULE, 1), event(MODEL, 2)])).toEqual([1, 2]);
    expect(times([event(RULE, 1, { acknowledgedAt: 5 }), event(MODEL, 2)])).toEqual([2]);
    expect(times([event(RULE, 1), event(MODEL, 1)])).toEqual([1]);
  });
});

describe('foundBy', () => {
  const words = (...names: (string | null)[]) => foundBy(only(names.map((name, i) => event(name, i))));

  it('names the producers as people do, the rule first', () => {
    expect(words(MODEL, RULE)).toBe('found by rule and model');
    expect(words(MODEL)).toBe('found by model');
    expect(words('second_reader:x', MODEL, RULE)).toBe('found by rule, model and second reader');
  });

  it('does not tell versions apart', () => {
    expect(words(RULE, 'rule:sternal/2')).toBe('found by rule');
  });

  it('is silent when the event is', () => {
    expect(words(null)).toBe('');
  });
});
