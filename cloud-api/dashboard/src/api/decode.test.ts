import { describe, expect, it } from 'vitest';
import * as decode from './decode';
import { problem } from './http';

describe('decode', () => {
  it('reads a live message and leaves out only the reading that is broken', () => {
    const good = { reading_type: 'eda', value: 2.1, unit: 'µS', time_ms: 5, key: 'ab:1:0', stored: false };
    const m = decode.serverMessage(JSON.stringify({ type: 'live', user_id: 'u', device_id: 'd', readings: [good, { value: 1 }] }));
    expect(m).toMatchObject({ type: 'live', readings: [{ readingType: 'eda', value: 2.1, timeMs: 5 }] });
  });

  it('takes messages of a newer server as nothing to do', () => {
    expect(decode.serverMessage('{"type":"something_new"}')).toEqual({ type: 'other' });
  });

  it('takes a change message that has only an id as a hint', () => {
    expect(decode.serverMessage('{"type":"gateway","id":"g"}')).toEqual({ type: 'gateway', gateway: null });
  });

  it('names the field that is missing', () => {
    expect(() => decode.user({ display_name: 'x' })).toThrow('"id"');
  });

  it('reads a device that was never linked', () => {
    expect(decode.device({ id: 'd', hardware_id: 'kinara:1', name: null, link: null })).toMatchObject({
      name: 'kinara:1',
      link: null,
      batteryPercent: null,
      worn: null,
    });
  });

  it('gives an unknown role the fewest rights', () => {
    const s = decode.session({
      access_token: 't', expires_in: 1, member: { id: 'm', email: 'e', role: 'auditor' }, tenant: { id: 't', name: 'n' },
    });
    expect(s.member.role).toBe('viewer');
  });

  it('keeps an event’s time as written, for naming it to the API', () => {
    const e = decode.event({ time: '2026-11-23T13:45:00.123Z', user_id: 'u', event_type: 'hot_flash' });
    expect(e.rawTime).toBe('2026-11-23T13:45:00.123Z');
    expect(e.time).toBe(Date.UTC(2026, 10, 23, 13, 45, 0, 123));
  });
});

describe('problem', () => {
  it('shows the detail of problem+json', () => {
    expect(problem(422, '{"title":"Unprocessable","detail":"from is after to"}').message).toBe('from is after to');
  });

  it('says something useful when a proxy answers with a page', () => {
    expect(problem(503, '<html>').message).toMatch(/Try again/);
  });
});
