import { describe, expect, it, vi } from 'vitest';
import type { ClinicEvent, Device, Gateway, ServerMessage } from '../api/types';
import { LiveStore } from './store';

const EPOCH = '00000001000000ff';
const live = (seq: number, timeMs: number, value = 70, extra: { epoch?: string; device?: string; stored?: boolean } = {}): ServerMessage => ({
  type: 'live',
  userId: 'u',
  deviceId: extra.device ?? 'd',
  readings: [{ readingType: 'heart_rate', value, unit: 'bpm', timeMs, key: `${extra.epoch ?? EPOCH}:${seq}:0`, stored: extra.stored ?? false }],
});
const stored = (seq: number, epoch = EPOCH, deviceId = 'd'): ServerMessage => ({ type: 'stored', deviceId, epoch, seq });
const heart = (s: LiveStore) => s.reading('u', 'heart_rate');
const empty = { alerts: [], users: [], devices: [], gateways: [], latest: [], events: [] };

describe('live and stored values', () => {
  it('shows a live value as not yet stored until its key is stored', () => {
    const s = new LiveStore();
    s.apply([live(10, 1_000)]);
    expect(heart(s)?.stored).toBe(false);
    s.apply([stored(9)]);
    expect(heart(s)?.stored).toBe(false);
    s.apply([stored(10)]);
    expect(heart(s)?.stored).toBe(true);
  });

  it('knows a value as stored when the mark overtook it', () => {
    const s = new LiveStore();
    s.apply([stored(10), live(10, 1_000)]);
    expect(heart(s)?.stored).toBe(true);
  });

  it('is not fooled by a mark of another epoch or another device', () => {
    const s = new LiveStore();
    s.apply([live(1, 1_000), stored(99, '00000001000000fe'), stored(99, EPOCH, 'other')]);
    expect(heart(s)?.stored).toBe(false);
  });

  it('does not replace a value by an older one', () => {
    const s = new LiveStore();
    s.apply([live(10, 5_000, 80), live(9, 4_000, 60)]);
    expect(heart(s)?.value).toBe(80);
  });

  it('takes the stored mark of the same key again, after a snapshot, without turning it back', () => {
    const s = new LiveStore();
    s.apply([live(10, 1_000), stored(10), live(10, 1_000)]);
    expect(heart(s)?.stored).toBe(true);
  });

  it('replaces a live value by the stored reading of the same or a later time', () => {
    const s = new LiveStore();
    s.apply([live(10, 1_000, 80)]);
    const reading = { userId: 'u', readingType: 'heart_rate', unit: 'bpm', value: 80 };
    s.load({ ...empty, latest: [{ ...reading, timeMs: 1_000 }] });
    expect(heart(s)).toMatchObject({ value: 80, stored: true });
    s.load({ ...empty, latest: [{ ...reading, value: 82, timeMs: 2_000 }] });
    expect(heart(s)).toMatchObject({ value: 82, stored: true });
  });

  it('keeps a newer live value over an older stored reading', () => {
    const s = new LiveStore();
    s.apply([live(10, 5_000, 80)]);
    s.load({ ...empty, latest: [{ userId: 'u', readingType: 'heart_rate', unit: 'bpm', value: 60, timeMs: 4_000 }] });
    expect(heart(s)).toMatchObject({ value: 80, stored: false });
  });

  it('marks the points of a chart as they are stored, oldest first', () => {
    const s = new LiveStore();
    s.apply([live(10, 1_000), live(11, 2_000), live(12, 3_000)]);
    expect(s.series('u', 'heart_rate').firstPending()).toBe(1_000);
    s.apply([stored(11)]);
    expect(s.series('u', 'heart_rate').firstPending()).toBe(3_000);
    expect(heart(s)?.stored).toBe(false);
    s.apply([stored(12)]);
    expect(s.series('u', 'heart_rate').firstPending()).toBe(Infinity);
    expect(heart(s)?.stored).toBe(true);
  });
});

describe('views', () => {
  it('are told once per batch, and only of what changed', () => {
    const s = new LiveStore();
    const mine = vi.fn();
    const other = vi.fn();
    s.subscribe('u|heart_rate', mine);
    s.subscribe('u|eda', other);
    s.apply([live(1, 1_000), live(2, 2_000), stored(2)]);
    expect(mine).toHaveBeenCalledTimes(1);
    expect(other).not.toHaveBeenCalled();
  });

  const device = (id: string, battery: number): Device => ({
    id, hardwareId: 'kinara:1', name: id, deviceType: 'wearable', userId: 'u', firmwareVersion: null,
    lastSeenAt: null, batteryPercent: battery, worn: true, link: null,
  });

  it('see a device replaced in its wearer’s list', () => {
    const s = new LiveStore();
    s.load({ ...empty, devices: [device('a', 90), device('b', 80)] });
    s.apply([{ type: 'device', device: device('a', 89) }]);
    expect(s.devicesOfUser('u').map((d) => d.batteryPercent)).toEqual([89, 80]);
  });

  it('see a device leave the wearer it was taken from', () => {
    const s = new LiveStore();
    s.load({ ...empty, devices: [device('a', 90)] });
    s.apply([{ type: 'device', device: { ...device('a', 90), userId: 'v' } }]);
    expect(s.devicesOfUser('u')).toEqual([]);
    expect(s.devicesOfUser('v')).toHaveLength(1);
  });

  it('keep a gateway’s buffer over time', () => {
    const s = new LiveStore();
    const gateway = (frames: number): Gateway => ({
      id: 'g', name: 'A', lastSeenAt: null, online: true, buffer: { frames, batches: 0, bytes: 0, oldestAt: null }, clock: null, version: null, level: null, notes: [],
    });
    s.apply([{ type: 'gateway', gateway: gateway(3) }, { type: 'gateway', gateway: gateway(5) }]);
    expect(s.bufferHistory('g').map((b) => b.frames)).toEqual([3, 5]);
    expect(s.gateways).toHaveLength(1);
  });
});

describe('events', () => {
  const event = (time: number, acknowledgedAt: number | null = null): ClinicEvent => ({
    time, rawTime: time, userId: 'u', eventType: 'hot_flash', severity: null, confidence: 0.9, data: {}, acknowledgedAt,
  });
  const by = (producer: string, time: number): ClinicEvent => ({ ...event(time), data: { producer } });

  it('are newest first, once each', () => {
    const s = new LiveStore();
    s.addEvents([event(1), event(3)]);
    s.apply([{ type: 'event', event: event(2) }, { type: 'event', event: event(3) }]);
    expect(s.events.map((e) => e.time)).toEqual([3, 2, 1]);
  });

  it('stay acknowledged when an older list comes late', () => {
    const s = new LiveStore();
    s.addEvents([event(1, 50)]);
    s.addEvents([event(1)]);
    expect(s.events[0]?.acknowledgedAt).toBe(50);
  });

  it('of two producers are one episode, also when their onset is the same', () => {
    const s = new LiveStore();
    s.addEvents([by('rule:a/1', 1_000)]);
    s.apply([{ type: 'event', event: by('model:b/1', 1_000) }]);
    expect(s.events).toHaveLength(2);
    expect(s.episodes).toHaveLength(1);
  });

  it('are acknowledged as the API does it: all of one wearer, kind and onset', () => {
    const s = new LiveStore();
    s.addEvents([by('rule:a/1', 1_000), by('model:b/1', 1_000), by('rule:a/1', 2_000)]);
    s.acknowledged(by('rule:a/1', 1_000), 5_000);
    expect(s.episodes.map((e) => [e.time, e.acknowledgedAt])).toEqual([[2_000, null], [1_000, 5_000]]);
  });
});
