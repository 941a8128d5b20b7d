import { describe, expect, it } from 'vitest';
import { parseKey, StoredMarks } from './key';

describe('parseKey', () => {
  it('reads epoch and seq, in one spelling of the epoch', () => {
    expect(parseKey('00000000DEADBEEF:42:3')).toEqual({ epoch: '00000000deadbeef', seq: 42 });
    expect(parseKey('deadbeef:42:0')).toEqual({ epoch: '00000000deadbeef', seq: 42 });
  });

  it('refuses what is not a key', () => {
    for (const key of ['', 'abc', 'xyz:1:0', 'ab::0', 'ab:-1:0', 'ab:1.5:0']) expect(parseKey(key)).toBeNull();
  });
});

describe('StoredMarks', () => {
  const key = (seq: number, epoch = '0000000000000001') => ({ epoch, seq });

  it('covers every seq up to the mark, of that device and epoch only', () => {
    const marks = new StoredMarks();
    marks.mark('d1', '0000000000000001', 7);
    expect(marks.covers('d1', key(7))).toBe(true);
    expect(marks.covers('d1', key(8))).toBe(false);
    expect(marks.covers('d2', key(7))).toBe(false);
    expect(marks.covers('d1', key(7, '0000000000000002'))).toBe(false);
  });

  it('never goes back when a lower mark comes late', () => {
    const marks = new StoredMarks();
    marks.mark('d', '1', 9);
    marks.mark('d', '1', 3);
    expect(marks.covers('d', key(9))).toBe(true);
  });

  it('forgets the epochs marked longest ago, so that reboots do not fill the memory', () => {
    const marks = new StoredMarks();
    for (let e = 1; e <= 20; e++) marks.mark('d', e.toString(16), 5);
    expect(marks.covers('d', key(5, '0000000000000001'))).toBe(false);
    expect(marks.covers('d', key(5, '0000000000000014'))).toBe(true);
  });
});
